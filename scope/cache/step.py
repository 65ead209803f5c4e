"""One decode step of one layer: append, attend, let tokens leave."""

from dataclasses import replace

import torch
from torch import Tensor

from scope.cache.arena import SpannedLayer
from scope.cache.layer import SlotLayer
from scope.kernels import Backend, FusingBackend, fuses
from scope.kernels.tensors import FREE, NewTokens, Ranking, Received, Sight
from scope.methods.recipe import Recipe
from scope.methods.score import Slots


def decode(
    layer: SlotLayer,
    backend: Backend | FusingBackend,
    recipe: Recipe,
    new: NewTokens,
    sight: Sight,
    asks: bool,
) -> Tensor:
    """Append one token per row, attend to what is seen, then evict what must go.

    A score that a kernel knows goes through that kernel at once; any other runs between two where
    it is asked, and so does a strategy that rewrites, and the choice of working sets. On a GPU
    either way is recorded with the step.

    Args:
        layer: the slots.
        backend: what computes.
        recipe: the methods.
        new: the tokens.
        sight: what they see.
        asks: whether seldom scores and strategies that rewrite are asked; else none may leave.

    Returns:
        ``[B, H_q, D]`` attention output.
    """
    score, strategy = recipe.score, recipe.strategy
    dtype = new.queries.dtype if recipe.score_dtype == "model" else torch.float32
    received = Received((score or strategy).group_reduction, dtype)
    rewrites = strategy.rewrites and asks
    looks = rewrites or layer.refreshing or (recipe.heads.share_heads and asks)
    kernel = score.kernel if score else None
    # Kernels begin the states of the scores that they know, and of no other.
    begun = score.state.keys() if score and kernel else set()
    if score and score.seldom and not asks:
        kernel = kernel or "recent"  # none may leave: any looks for a free slot
    if layer.working is not None:
        sight = replace(sight, listed=layer.working.listed)
    if fuses(backend) and not looks and layer.per_slot <= begun and (score is None or kernel):
        ranking = Ranking(
            kernel=kernel,
            received=received,
            recent=strategy.recent,
            state={name: layer.state[name] for name in begun},
            constants=vars(score) if score else {},
            draw=layer.draw,
            layer=layer.number,
        )
        return backend.attend_and_evict(layer.slots, layer.counts, new, sight, ranking)
    if isinstance(layer, SpannedLayer):
        # A record needs the same shapes at every step; elsewhere what is not used is not copied.
        width = None if fuses(backend) else layer.counts.used + 1
        plain = layer.opened(width=width)
        plain.counts = layer.counts
        output = decode(plain, backend, recipe, new, sight, asks)
        layer.take(plain)
        return output

    layer.clear_state_of_new()
    if layer.working is not None and layer.refreshing:
        full = layer.full
        if strategy.drifts:
            full = layer.working.drift(full, strategy.drifted, new.turned.queries)
        sight = replace(sight, listed=replace(layer.working.listed, full=full))
    if score is None and not looks:
        output, _ = backend.attend(layer.slots, layer.counts, new, sight)
        backend.evict(layer.slots, layer.counts, None, strategy.recent)
        return output

    output, current = backend.attend(layer.slots, layer.counts, new, sight, received)
    slots = _slots(layer, backend, new, current, sight, strategy.recent)
    if layer.working is not None and layer.refreshing:
        best = strategy.rank(slots)
        layer.working.refresh(backend, full, layer.slots, best, slots.newest)
    worth = None
    if score is not None:
        # Where none may leave any number does: it is a free slot that is looked for.
        worth = current
        if asks or not score.seldom:
            worth = recipe.heads.joined(score.worth(slots).float(), current.shape[1])
    if rewrites:
        slots = replace(slots, positions=slots.positions.clone(), ranks=slots.ranks.clone())
    backend.evict(layer.slots, layer.counts, worth, strategy.recent)
    if rewrites:
        there = layer.positions[:, :, : current.shape[-1]]
        strategy.rewrite(slots, (slots.positions != FREE) & (there == FREE))
    return output


def look(
    layer: SlotLayer, backend: Backend | FusingBackend, new: NewTokens, sight: Sight
) -> Tensor:
    """Attend to what a layer holds after its own step, and leave it as it is.

    Args:
        layer: the slots.
        backend: what computes.
        new: of which the queries count.
        sight: what they see.

    Returns:
        ``[B, H_q, D]`` attention output.
    """
    if fuses(backend):
        return backend.look(layer.slots, layer.counts, new, sight)
    plain = layer.opened(width=layer.counts.used + 1)
    return backend.look(plain.slots, layer.counts, new, sight)


def _slots(
    layer: SlotLayer, backend: Backend, new: NewTokens, current: Tensor, sight: Sight, recent: int
) -> Slots:
    """What a method sees: of the slots, as many as attention was told of."""
    width = current.shape[-1]
    used = layer.slots.first(width)
    return Slots(
        keys=used.keys,
        values=used.values,
        positions=used.positions,
        ranks=used.ranks,
        newest=layer.counts.newest,
        position=layer.counts.position,
        protected=layer.counts.protected,
        recent=recent,
        new=new,
        current=current,
        draw=layer.draw,
        layer=layer.number,
        backend=backend,
        state={
            name: part[:, :, :width] if name in layer.per_slot else part
            for name, part in layer.state.items()
        },
        scaling=sight.scaling,
        sliding_window=sight.sliding_window,
    )
