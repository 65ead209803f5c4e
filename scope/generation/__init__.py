"""Decoding a batch of prompts with one cache."""
