"""LongGenBench: many questions in one prompt, to be answered in one long generation.

``build`` makes the data files from the data sets of `scope.tasks`, ``styles`` writes their prompts,
``instructions`` says what a runner puts before a prompt. ``sample/`` is a small
data set of our own, for a first run without any download.
"""
