"""From a command line to result folders: what run_longgenbench.py does."""
