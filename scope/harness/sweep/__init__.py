"""Many runs on many workers: what sweep.py does."""
