"""LongGenBench: many questions in one prompt, to be answered in one long generation.

``sources`` reads GSM8K, MMLU and CommonsenseQA, ``styles`` writes them as prompts, ``build`` makes
the data files, ``instructions`` holds what a runner puts before a prompt. ``sample/`` is a small
data set of our own, for a first run without any download.
"""
