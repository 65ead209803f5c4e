# ruff: noqa: ANN201  (what a kernel returns, Triton knows)
"""Chance that depends on numbers alone."""

import triton
import triton.language as tl


@triton.jit
def mixed(numbers):
    """As `tensors.mixed`."""
    for _ in tl.static_range(2):
        numbers = ((numbers ^ (numbers >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)
