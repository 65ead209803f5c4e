"""Scores of result folders: what was answered, how many of the answers are right, how sure we are.

``results`` reads the folders, ``upstream`` and ``indexed`` are the two scores, ``answers`` reads
one answer text, ``statistics`` adds intervals, ``report`` and ``figures`` show it all.
"""
