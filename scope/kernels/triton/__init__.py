"""The kernels in Triton, for a GPU; a CPU runs them in Triton's interpreter."""
