"""Attention of one decode step over the slots of a cache."""
