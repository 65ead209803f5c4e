"""How the attention of a model reaches the slots, which models can, and what `patch` does."""
