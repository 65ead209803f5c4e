"""Methods that merge tokens, in lists and loops over their papers' equations."""

from math import exp, hypot
from typing import Any, Protocol

from safetensors.torch import load_file
from torch import Tensor


class Token(Protocol):
    """What is merged: a key and a value."""

    position: int
    key: Tensor
    value: Tensor


def merge_into_lightest(
    tokens: list[Any], kept: list[int], scores: list[float], settings: Any, layer: int
) -> None:
    """LoCoCo after a prompt: the lightest that are kept become mixtures with what is dropped."""
    window = settings.window_size
    merged = min(len(load_file(settings.heads)["bias"][layer]), len(kept) - window)
    ordered = sorted(kept[: len(kept) - window], key=lambda p: (-scores[p], p))
    pivots = ordered[len(ordered) - merged :]
    rest = [p for p in range(len(tokens)) if p not in kept or p in pivots]
    fold([tokens[p] for p in rest], [p in pivots for p in rest], settings.heads, layer)


def fold_overflow(tokens: list[Any], leaving: int, heads: str, layer: int) -> None:
    """LoCoCo while decoding: the lightest leave, and are mixed into the next lightest."""
    merged = len(load_file(heads)["bias"][layer])
    # Of equals the newest leaves first.
    lightest = sorted(tokens, key=lambda t: (t.received, -t.position))[: leaving + merged]
    pivots = {token.position for token in lightest[leaving:]}
    rest = sorted(lightest, key=lambda t: t.position)
    fold(rest, [token.position in pivots for token in rest], heads, layer)


def fold(rest: list[Token], is_pivot: list[bool], heads: str, layer: int) -> None:
    """The j-th pivot becomes (1 - g) of itself and g of all, weighed by the j-th channel."""
    parts = {name: part[layer].double() for name, part in load_file(heads).items()}
    gate, reach = float(parts["gate"]), parts["weight"].shape[-1] // 2
    pairs = [[*token.key.tolist(), *token.value.tolist()] for token in rest]
    size = len(pairs[0]) // 2
    mixtures = []
    for channel in range(sum(is_pivot)):
        taps = parts["weight"][channel].T.tolist()
        answers = []
        for i in range(len(rest)):
            answer = float(parts["bias"][channel])
            for place, tap in zip(range(i - reach, i + reach + 1), taps, strict=True):
                if 0 <= place < len(rest):
                    answer += sum(x * y for x, y in zip(tap, pairs[place], strict=True))
            answers.append(max(answer, 0.0))
        shares = [exp(answer) for answer in answers]
        mixtures.append([share / sum(shares) for share in shares])
    pivots = [i for i, chosen in enumerate(is_pivot) if chosen]
    for i, shares in zip(pivots, mixtures, strict=True):
        mixed = [
            sum(s * pair[c] for s, pair in zip(shares, pairs, strict=True)) for c in range(2 * size)
        ]
        whole = [
            (1 - gate) * own + gate * other for own, other in zip(pairs[i], mixed, strict=True)
        ]
        rest[i].key = rest[i].key.new_tensor(whole[:size])
        rest[i].value = rest[i].value.new_tensor(whole[size:])


def merge_similar(
    tokens: list[Any], scores: list[float], capacity: int, settings: Any
) -> list[int]:
    """KVMerger after a prompt: runs become their pivots. Returns what is kept."""
    count, window = len(tokens), settings.window_size
    keys = [token.key.tolist() for token in tokens]
    by_weight = sorted(range(count - window), key=lambda p: (-scores[p], p))
    heavy = by_weight[: min(int(settings.heavy_share * count), capacity - window)]
    similar = []
    for i in range(1, count - window):
        product = sum(x * y for x, y in zip(keys[i], keys[i - 1], strict=True))
        cosine = product / (hypot(*keys[i]) * hypot(*keys[i - 1]))
        if cosine > settings.least_similarity and i not in heavy and i - 1 not in heavy:
            similar.append((-cosine, i))
    joins = {i for _, i in sorted(similar)[: count - capacity]}
    runs: list[list[int]] = []
    for i in range(count):
        if i in joins:
            runs[-1].append(i)
        else:
            runs.append([i])
    pivots = []
    for run in runs:
        pivot = min(run, key=lambda p: (-scores[p], p))
        pivots.append(pivot)
        weights = []
        for i in run:
            square = sum((x - y) ** 2 for x, y in zip(keys[pivot], keys[i], strict=True))
            weights.append(exp(-square / (2 * settings.sigma**2)))
        shares = [weight / sum(weights) for weight in weights]
        merged = [
            sum(share * state for share, state in zip(shares, states, strict=True))
            for states in ([tokens[i].key for i in run], [tokens[i].value for i in run])
        ]
        tokens[pivot].key, tokens[pivot].value = merged
    others = [p for p in pivots if p < count - window]
    best = sorted(others, key=lambda p: (-scores[p], p))[: capacity - window]
    return sorted(best) + list(range(count - window, count))
