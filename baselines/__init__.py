"""Published baselines: prefill compressors, and decoding strategies over one unified budget."""
