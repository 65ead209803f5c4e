"""One attention forward for every supported model and method, and how it gets into a model."""
