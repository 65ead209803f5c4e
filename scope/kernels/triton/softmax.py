# ruff: noqa: ANN201  (what a kernel returns, Triton knows)
"""Attention that comes block by block."""

import triton
import triton.language as tl


@triton.jit
def joined(logits, values, maximum, total, weighted):
    """A block of tokens joins what has been attended to.

    Args:
        logits: ``[G, n]`` in base 2.
        values: tiles ``[n, some channels]``, of which each has its sum in ``weighted``.
        maximum, total, weighted: so far; ``[G]``, ``[G]`` and a tuple of ``[G, some channels]``.

    Returns:
        The three of them.
    """
    highest = tl.maximum(maximum, tl.max(logits, axis=1))
    # Where nothing has been visible yet, any finite reference does.
    reference = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(logits - reference[:, None])
    shrink = tl.exp2(maximum - reference)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = ()
    for tile in tl.static_range(len(values)):
        value = values[tile]
        sum = tl.dot(
            weights.to(value.dtype), value, weighted[tile] * shrink[:, None], input_precision="ieee"
        )
        sums += (sum,)
    return highest, total, sums
