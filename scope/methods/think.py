"""ThinK: which channels of a prompt's keys are worth storing (arXiv 2407.21018)."""

from torch import Tensor

from scope.kernels.tensors import FREE
from scope.methods.prompt import Entries


def best_channels(queries: Tensor, entries: Entries, count: int) -> Tensor:
    """The channels that the last queries make most of: ``[H, count]`` int64, in order.

    Without a channel the logits of queries Q and keys K change by a matrix whose Frobenius norm is
    ``|Q[:, c]| * |K[:, c]|``, and those of the largest stay: greedily chosen, the logits with the
    rest are as close as can be told channel by channel. Squares are averaged over the query heads
    of a group, whose keys are stored once. Of equals the first stay.

    Args:
        queries: ``[H_q, w, D]`` the last of the prompt.
        entries: what is held of it, ``[H, P, D]``.
        count: channels that are stored.
    """
    grouped = queries.unflatten(0, (len(entries.keys), -1))
    asked = grouped.float().square().mean(dim=(1, 2))
    held = (entries.positions != FREE)[..., None]
    given = (entries.keys.float().square() * held).sum(dim=1)
    ranked = (asked * given).sort(dim=-1, descending=True, stable=True).indices
    return ranked[:, :count].sort(dim=-1).values
