"""Methods that merge tokens, in lists and loops over their papers' equations."""

from math import exp
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
