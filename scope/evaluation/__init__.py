"""Scores of result folders: what was answered, how many of the answers are right, how sure we are.

``results`` and ``runfile`` read the folders, ``indexed`` has both scores, which the data sets of
`scope.tasks` mark, ``statistics`` adds intervals, ``report`` and ``figures`` show it all.
"""
