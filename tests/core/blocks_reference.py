"""KV-Compress in lists and loops: blocks of all layers and heads leave one after the other."""

from math import inf
from types import SimpleNamespace


def worths(group: list[list[list[float]]], settings: SimpleNamespace) -> list[float]:
    """What each token is worth by the attention ``[query][key]`` of a group's query heads."""
    length = len(group[0])
    sums = [0.0] * length
    for rows in group:
        for i, row in enumerate(rows):
            for j in range(length):
                observes = i >= length - settings.window_size
                counts = observes if settings.judged_by == "window" else i >= j + 10
                sums[j] += row[j] ** 2 * counts
    reach = settings.kernel_size // 2 if settings.judged_by == "window" else 0
    return [max(sums[max(j - reach, 0) : j + reach + 1]) for j in range(length)]


def survivors(layers: list[list[list[float]]], settings: SimpleNamespace) -> list[list[list[int]]]:
    """Positions ``[layer][head]`` that stay, of tokens worth ``[layer][head][position]``."""
    length, size = len(layers[0][0]), settings.block_size
    slots = len(layers) * len(layers[0]) * settings.max_capacity_prompt
    heads = {}
    for layer, own in enumerate(layers):
        for head, worth in enumerate(own):
            for j in range(length - settings.protected_window, length):
                worth[j] = inf
            ascending = sorted(range(length), key=lambda j: (worth[j], -j))
            empty = [None] * (-length % size)
            tokens = [*empty, *ascending]
            blocks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
            heads[layer, head] = [(worth[block[-1]], block) for block in blocks]
    while length > settings.max_capacity_prompt and size * sum(map(len, heads.values())) > slots:
        leaving = min((blocks[0][0], at) for at, blocks in heads.items() if blocks)[1]
        heads[leaving].pop(0)
    return [
        [
            sorted(j for _, block in heads[layer, head] for j in block if j is not None)
            for head in range(len(own))
        ]
        for layer, own in enumerate(layers)
    ]
