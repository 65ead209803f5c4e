"""Data sets: one file each, with how to read it, ask it, mark it, and what its published sizes are.

``task`` is the interface, ``registry`` the list. A data set in LongGenBench's form, many numbered
questions in one prompt, begins from ``numbered``, one with options from ``choices``; ``sources``
reads local files and the hub, ``answers`` reads one answer text, ``upstream`` reads them as the
published scorer does. Nothing here needs torch or transformers.
"""
