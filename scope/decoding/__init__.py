"""SCOPE's decoding strategies (arXiv 2412.13649, section 3): a decode pool of its own."""
