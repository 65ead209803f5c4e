"""LoCoCo's mixtures in plain torch: what a CPU runs, and what heads are trained through."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from scope.kernels.tensors import FREE, Mixer, by_worth_then_newest

_FIRST, _LAST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


def fold(
    keys: Tensor,
    values: Tensor,
    ranks: Tensor,
    worth: Tensor,
    leaving: Tensor,
    last: Tensor,
    most: int,
    mixer: Mixer,
) -> None:
    """Mix what leaves, and the least worthy, into the pivots; see `Backend`."""
    may_be_folded = (ranks != FREE) & (ranks <= last[:, None, None])
    order = by_worth_then_newest(worth, ranks).masked_fill(~may_be_folded, _LAST)
    order = order.masked_fill(leaving, _FIRST)
    most = min(most, order.shape[-1])
    lightest = order.topk(most, largest=False)
    rest = torch.zeros_like(leaving).scatter(2, lightest.indices, lightest.values != _LAST)
    rest &= leaving.any(dim=-1, keepdim=True)
    places, new_keys, new_values = folded(keys, values, rest, rest & ~leaving, ranks, most, mixer)
    keys.scatter_(2, places, new_keys)
    values.scatter_(2, places, new_values)


def folded(
    keys: Tensor,
    values: Tensor,
    rest: Tensor,
    pivots: Tensor,
    order: Tensor,
    most: int,
    mixer: Mixer,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pivots become mixtures of all the rest, among which they lie.

    Args:
        keys, values: ``[..., S, D]``.
        rest: ``[..., S]`` bool, what is to be merged, pivots included.
        pivots: ``[..., S]`` bool, at most M a row: the j-th takes the j-th channel.
        order: ``[..., S]`` integers, distinct among the rest, that grow with the position.
        most: of the rest in any row.
        mixer: of the layer.

    Returns:
        ``[..., most, D]`` places along S, to be scattered to, and keys and values there.
    """
    last = torch.iinfo(order.dtype).max
    found = order.masked_fill(~rest, last).topk(most, dim=-1, largest=False)
    places = found.indices[..., None].expand(*found.indices.shape, keys.shape[-1])
    mixed = _mixed(
        keys.gather(-2, places),
        values.gather(-2, places),
        found.values != last,
        pivots.gather(-1, found.indices),
        mixer,
    )
    return places, *mixed


def _mixed(
    keys: Tensor, values: Tensor, there: Tensor, pivots: Tensor, mixer: Mixer
) -> tuple[Tensor, Tensor]:
    """The same of ``[..., P, D]`` in the order of positions; what is not there is padding."""
    dtype = torch.promote_types(keys.dtype, torch.float32)
    states = torch.cat([keys, values], dim=-1).to(dtype) * there[..., None]
    weight, bias = mixer.weight.to(dtype), mixer.bias.to(dtype)
    answer = _convolution(states, weight, bias).relu()
    share = answer.masked_fill(~there[..., None], -torch.inf).softmax(dim=-2)
    share = share.nan_to_num()  # of a row where nothing is to be merged
    channel = (pivots.cumsum(dim=-1) - 1).clamp(0, len(bias) - 1)
    merged = (share.mT @ states).gather(
        -2, channel[..., None].expand(*channel.shape, states.shape[-1])
    )
    mixed = torch.lerp(states, merged, mixer.gate.to(dtype))
    new_keys, new_values = mixed.to(keys.dtype).chunk(2, dim=-1)
    changed = pivots[..., None]
    return new_keys.where(changed, keys), new_values.where(changed, values)


def _convolution(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``[..., P, M]`` of ``[..., P, 2D]``, in products: cuDNN's convolution may round to TF32."""
    entries, taps = states.shape[-2], weight.shape[-1]
    padded = pad(states, (0, 0, taps // 2, taps // 2))
    products = (padded[..., tap : tap + entries, :] @ weight[..., tap].T for tap in range(taps))
    return sum(products, start=bias)
