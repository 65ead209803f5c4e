"""What the `paper` preset means, in the plainest code: one sequence, lists, loops over positions.

Takes only the model's weights and its rotary table: attention, scores, budgets and eviction are
written out here and share nothing with the product.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scope import Compression
from tests.core.blocks_reference import survivors, worths
from tests.core.merging_reference import fold_overflow, merge_into_lightest, merge_similar

NUM_SINKS = 4
UNIFORM = ("SnapKV", "H2O", "StreamingLLM", "LoCoCo", "KVMerger")


@dataclass
class Entry:
    """One token in the cache of one KV head, and the attention that it has received so far."""

    position: int
    key: Tensor
    value: Tensor
    received: float


@dataclass(frozen=True)
class Step:
    """After one forward: logits of the next token, and positions ``[layer][head]``.

    Attributes:
        logits: of the next token.
        kept: what is held.
        working: what RefreshKV reads until it refreshes, the first to be dropped in front.
    """

    logits: Tensor
    kept: list[list[list[int]]]
    working: list[list[list[int]]]


def everything(compression: Compression) -> SimpleNamespace:
    """Its settings, and something for those that it does not read."""
    unread = {"window_size": 8, "max_capacity_prompt": 0, "group_reduction": "mean"}
    unread |= {"decoding_window_size": 2, "decoding_recent_size": 1, "delta": None, "period": 1}
    unread |= {"working_set": None, "stride": 1, "threshold": None, "share_layers": None}
    return SimpleNamespace(**(unread | compression.settings()))


class SlowReference:
    """Reads a prompt, then one token at a time.

    Args:
        model: an unpatched Llama, Mistral or Qwen2.
        compression: what to keep; nothing but its settings is read.
        total: T, tokens that will be generated.
    """

    def __init__(self, model: PreTrainedModel, compression: Compression, total: int) -> None:
        self.model = model
        self.settings = everything(compression)
        self.total = total
        pairs = [pair.split("=") for pair in (self.settings.share_layers or "").split(",") if pair]
        self.sources = {int(layer): int(source) for layer, source in pairs}
        # Layers that have a cache; everything that is counted by layer counts these.
        self.owners = [i for i in range(model.config.num_hidden_layers) if i not in self.sources]
        self.num_layers = len(self.owners)
        self.group = model.config.num_attention_heads // model.config.num_key_value_heads
        self.refreshes = compression.decoding_metric == "refreshkv"
        self.unified = compression.decoding_metric in ("h2o", "slm", "pyramidinfer", "lococo")
        self.score = compression.decoding_score

    # --- one forward ------------------------------------------------------------------------------

    @torch.no_grad()
    def read_prompt(self, prompt: list[int]) -> Step:
        self.length, self.step = len(prompt), 0
        self.cache: list[list[list[Entry]]] = []
        # All queries of the generation, by layer and query head.
        self.queries = [[[] for _ in range(99)] for _ in range(self.num_layers)]
        self.working: list[list[list[int]]] = []
        self.last_queries: list[Tensor] = []
        hidden = self.model.model.embed_tokens(torch.tensor([prompt]))
        read, states = [], {}
        for number, layer in enumerate(self.model.model.layers):
            queries, keys, values = self._project(layer, hidden, list(range(self.length)))
            keys, values = states[number] = states.get(self.sources.get(number), (keys, values))
            attention = [
                [
                    self._attend(query, list(keys[head // self.group]), list(range(self.length)), i)
                    for i, query in enumerate(queries[head])
                ]
                for head in range(len(queries))
            ]
            outputs = [
                torch.stack([weigh(row, list(values[head // self.group])) for row in rows])
                for head, rows in enumerate(attention)
            ]
            hidden = self._finish(layer, hidden, outputs)
            if number in self.sources:
                continue
            self.last_queries.append(mean_of_heads(queries))
            read.append((attention, keys, values))
        if self.settings.method == "ZigZagKV":
            self.zigzag = self._zigzag([attention for attention, _, _ in read])
        if self.settings.method == "KVCompress":
            self.survivors = survivors(
                [
                    [
                        worths(attention[head : head + self.group], self.settings)
                        for head in range(0, len(attention), self.group)
                    ]
                    for attention, _, _ in read
                ],
                self.settings,
            )
        for layer_idx, (attention, keys, values) in enumerate(read):
            self.cache.append(
                [
                    self._compress(layer_idx, head, attention, keys[head], values[head])
                    for head in range(len(keys))
                ]
            )
            self.working.append([])
            for head, entries in enumerate(self.cache[-1]):
                group = attention[head * self.group : (head + 1) * self.group]
                scores = smooth([max(column) for column in zip(*last_of(group), strict=True)])
                scored = [(scores[entry.position], entry.position) for entry in entries]
                self.working[-1].append(self._best_read(scored))
        return self._result(hidden)

    @torch.no_grad()
    def read_token(self, token: int) -> Step:
        self.step += 1
        position = self.length + self.step - 1
        hidden = self.model.model.embed_tokens(torch.tensor([[token]]))
        for number, layer in enumerate(self.model.model.layers):
            queries, keys, values = self._project(layer, hidden, [position])
            outputs, currents = [], []
            if number in self.sources:
                held = self.cache[self.owners.index(self.sources[number])]
                outputs = [
                    self._look(query[0], held[head // self.group], position)
                    for head, query in enumerate(queries)
                ]
                hidden = self._finish(layer, hidden, outputs)
                continue
            layer_idx = self.owners.index(number)
            is_full = self._is_full(layer_idx, queries)
            for head, entries in enumerate(self.cache[layer_idx]):
                entries.append(Entry(position, keys[head][0], values[head][0], 0.0))
                working = self.working[layer_idx][head]
                if not is_full:
                    del working[: max(len(working) + 1 - self.settings.working_set, 0)]
                    working.append(position)
                    entries = [entry for entry in entries if entry.position in working]
                held = [entry.position for entry in entries]
                rows = []
                for number in range(head * self.group, (head + 1) * self.group):
                    query = queries[number][0]
                    self.queries[layer_idx][number].append(query)
                    row = self._attend(query, [e.key for e in entries], held, position)
                    rows.append(row)
                    outputs.append(weigh(row, [e.value for e in entries])[None])
                if self.refreshes and is_full:
                    scores = smooth([max(column) for column in zip(*rows, strict=True)])
                    best = self._best_read(list(zip(scores, held, strict=True)))
                    self.working[layer_idx][head] = best
                current = self._reduce(rows)
                for entry, share in zip(entries, current, strict=True):
                    entry.received += share
                currents.append(dict(zip(held, current, strict=True)))
            worths = [self._worth(layer_idx, *one) for one in enumerate(currents)]
            self.cache[layer_idx] = [
                self._evict(layer_idx, head, *own)
                for head, own in enumerate(zip(self.cache[layer_idx], worths, strict=True))
            ]
            hidden = self._finish(layer, hidden, outputs)
        return self._result(hidden)

    def _project(
        self, layer: nn.Module, hidden: Tensor, positions: list[int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries, keys (both rotated) and values: per head a tensor ``[tokens, D]``."""
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        cos, sin = self.model.model.rotary_emb(normed, torch.tensor([positions]))
        heads = [
            project(normed)[0].split(attention.head_dim, dim=1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        queries, keys = ([rotate(x, cos[0], sin[0]) for x in states] for states in heads[:2])
        return queries, keys, list(heads[2])

    def _attend(
        self, query: Tensor, keys: list[Tensor], held: list[int], position: int
    ) -> list[float]:
        """Attention of the query at a position to the keys at the held positions."""
        window = getattr(self.model.config, "sliding_window", None) or position + 1
        visible = [i for i, p in enumerate(held) if position - window < p <= position]
        logits = torch.stack([keys[i] for i in visible]) @ query / len(query) ** 0.5
        probabilities = [0.0] * len(held)
        for i, probability in zip(visible, logits.softmax(dim=0).tolist(), strict=True):
            probabilities[i] = probability
        return probabilities

    def _look(self, query: Tensor, entries: list[Entry], position: int) -> Tensor:
        """Output ``[1, D]`` of attention to these entries."""
        held = [entry.position for entry in entries]
        row = self._attend(query, [entry.key for entry in entries], held, position)
        return weigh(row, [entry.value for entry in entries])[None]

    def _finish(self, layer: nn.Module, hidden: Tensor, outputs: list[Tensor]) -> Tensor:
        hidden = hidden + layer.self_attn.o_proj(torch.cat(outputs, dim=1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def _result(self, hidden: Tensor) -> Step:
        kept = [[[entry.position for entry in head] for head in layer] for layer in self.cache]
        working = [[list(head) for head in layer] for layer in self.working]
        return Step(self.model.lm_head(self.model.model.norm(hidden))[0, -1], kept, working)

    def _reduce(self, rows: list[list[float]]) -> list[float]:
        if self.settings.group_reduction == "max":
            return [max(column) for column in zip(*rows, strict=True)]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    # --- the prompt -------------------------------------------------------------------------------

    def _compress(
        self,
        layer_idx: int,
        head: int,
        attention: list[list[list[float]]],
        keys: Tensor,
        values: Tensor,
    ) -> list[Entry]:
        group = attention[head * self.group : (head + 1) * self.group]
        everyone = self._reduce([column_sums(rows) for rows in group])
        capacity = self._capacity(layer_idx, head)
        if self.settings.method == "KVCompress":
            kept = self.survivors[layer_idx][head]
        elif self.length <= capacity:
            kept = list(range(self.length))
        elif self.settings.method == "StreamingLLM":
            recent = capacity - NUM_SINKS
            kept = [*range(NUM_SINKS), *range(self.length - recent, self.length)]
        else:
            window = self.settings.window_size
            candidates = list(range(self.length - window))
            if self.settings.method in ("H2O", "PyramidInfer", "LoCoCo", "KVMerger"):
                scores = everyone
            else:
                observed = self._reduce([column_sums(rows[-window:]) for rows in group])
                scores = self._smooth(observed[: len(candidates)])
            chosen = best(candidates, scores, capacity - window)
            kept = chosen + list(range(self.length - window, self.length))
        goes_on = self.unified and self.score == "cumulative"
        tokens = [Entry(p, k, v, 0.0) for p, (k, v) in enumerate(zip(keys, values, strict=True))]
        if self.length > capacity and self.settings.method == "LoCoCo":
            merge_into_lightest(tokens, kept, everyone, self.settings, self.owners[layer_idx])
        if self.length > capacity and self.settings.method == "KVMerger":
            kept = merge_similar(tokens, everyone, capacity, self.settings)
        entries = [tokens[p] for p in kept]
        for entry in entries:
            entry.received = everyone[entry.position] if goes_on else 0.0
        return entries

    def _capacity(self, layer_idx: int, head: int) -> int:
        if self.settings.method == "ALLKV":
            return self.length
        capacity, window = self.settings.max_capacity_prompt, self.settings.window_size
        if self.settings.method in UNIFORM or self.length <= capacity:
            return capacity
        if self.settings.method == "KVCompress":
            return len(self.survivors[layer_idx][head])
        if self.settings.method == "ZigZagKV":
            return self.zigzag[layer_idx]
        budgets = pyramid(capacity - window, 20, self.length - window, self.num_layers)
        return budgets[layer_idx] + window

    def _zigzag(self, layers: list[list[list[list[float]]]]) -> list[int]:
        """Budgets of all layers, by the attention of every query head in each."""
        window, capacity = self.settings.window_size, self.settings.max_capacity_prompt
        fewest = []
        for attention in layers:
            heads = range(0, len(attention), self.group)
            observed = [
                [column_sums(rows[-window:]) for rows in attention[head : head + self.group]]
                for head in heads
            ]
            each = [
                fewest_holding(
                    [sum(column) for column in zip(*group, strict=True)],
                    self.settings.attention_mass,
                )
                for group in observed
            ]
            fewest.append(Fraction(sum(each), len(each)))
        least = max(window, floor(Fraction(str(self.settings.least_share)) * capacity))
        return in_proportion(fewest, len(layers) * capacity, least, self.length)

    def _smooth(self, scores: list[float]) -> list[float]:
        reach = self.settings.kernel_size // 2
        padded = [0.0] * reach + scores + [0.0] * reach
        around = [padded[i : i + 2 * reach + 1] for i in range(len(scores))]
        if self.settings.pooling == "maxpool":
            return [max(near) for near in around]
        return [sum(near) / len(near) for near in around]

    # --- RefreshKV --------------------------------------------------------------------------------

    def _is_full(self, layer_idx: int, queries: list[Tensor]) -> bool:
        if not self.refreshes:
            return True
        if self.step % self.settings.stride:
            return False
        query, last = mean_of_heads(queries), self.last_queries[layer_idx]
        threshold = self.settings.threshold
        if threshold is not None and query @ last / (query.norm() * last.norm()) > threshold:
            return False
        self.last_queries[layer_idx] = query
        return True

    def _best_read(self, scored: list[tuple[float, int]]) -> list[int]:
        """The K best scored positions, the worst first; of equal ones the earlier is better."""
        ranked = sorted(scored, key=lambda pair: (-pair[0], pair[1]))
        return [position for _, position in ranked[: self.settings.working_set]][::-1]

    # --- the generation ---------------------------------------------------------------------------

    def _worth(self, layer_idx: int, head: int, current: dict[int, float]) -> dict[int, float]:
        """What the tokens of a head compete by, by position as this step's attention."""
        if self.score == "cumulative":
            return {entry.position: entry.received for entry in self.cache[layer_idx][head]}
        return current

    def _evict(
        self, layer_idx: int, head: int, entries: list[Entry], worth: dict[int, float]
    ) -> list[Entry]:
        frozen = 0 if self.unified else min(self._capacity(layer_idx, head), self.length)
        limit = self._limit(layer_idx, head, len(entries))
        pool = entries[frozen:]
        if limit is None or len(pool) <= limit:
            return entries
        if self.settings.decoding_metric == "slm":
            return pool[:NUM_SINKS] + pool[len(pool) - (limit - NUM_SINKS) :]
        recent = self.settings.decoding_recent_size
        candidates = [entry.position for entry in pool[:-recent]]
        if self.settings.decoding_metric == "lococo":
            fold_overflow(
                pool[:-recent], len(pool) - limit, self.settings.heads, self.owners[layer_idx]
            )
        stay = set(best(candidates, worth, limit - recent))
        return entries[:frozen] + [e for e in pool[:-recent] if e.position in stay] + pool[-recent:]

    def _limit(self, layer_idx: int, head: int, held: int) -> int | None:
        """How many tokens the pool is cut to after this step; None for no selection."""
        window, recent = self.settings.decoding_window_size, self.settings.decoding_recent_size
        match self.settings.decoding_metric:
            case "None" | "refreshkv":
                return None
            case "slide":
                return window
            case "adaptive":
                return self._adaptive(self.step) if self.step > recent else None
            case "discontinuous":
                grown = self._adaptive(self.step) > self._adaptive(self.step - 1)
                return self._adaptive(self.step) if self.step > recent and grown else None
            case "periodic":
                over = self.step - window
                return window if over > 0 and over % self.settings.period == 0 else None
            case "lococo":
                budget = self._capacity(layer_idx, head) + window
                return budget + 1 - self.settings.period if held > budget else None
            case "rpc":
                if self.step % self.settings.period:
                    return None
                return self.step // self.settings.keep_one_in + recent
            case "pyramidinfer":
                capacities = [self._capacity(layer, head) for layer in range(self.num_layers)]
                everywhere = sum(capacities) // self.num_layers
                average = everywhere + window - recent
                return pyramid(average, 2, 2 * average, self.num_layers)[layer_idx] + recent
            case _:
                return self._capacity(layer_idx, head) + window

    def _adaptive(self, step: int) -> int:
        window, recent = self.settings.decoding_window_size, self.settings.decoding_recent_size
        if step <= recent:
            return recent
        growth = Fraction((step - recent) * (window - recent), self.total - recent)
        return min(window, recent + floor(growth))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=1)
    return states * cos + torch.cat([-second, first], dim=1) * sin


def weigh(probabilities: list[float], values: list[Tensor]) -> Tensor:
    stacked = torch.stack(values)
    return torch.tensor(probabilities, dtype=stacked.dtype) @ stacked


def mean_of_heads(queries: list[Tensor]) -> Tensor:
    return torch.stack(last_of(queries)).mean(dim=0)


def last_of(lists: list) -> list:
    return [one[-1] for one in lists]


def smooth(scores: list[float], reach: int = 3) -> list[float]:
    return [max(scores[max(i - reach, 0) : i + reach + 1]) for i in range(len(scores))]


def column_sums(rows: list[list[float]]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]


def best(positions: list[int], scores: dict[int, float] | list[float], count: int) -> list[int]:
    """The ``count`` best scored positions in order; of equal ones the earlier."""
    return sorted(sorted(positions, key=lambda p: (-scores[p], p))[:count])


def pyramid(average: int, beta: int, ceiling: int, num_layers: int) -> list[int]:
    """Whole numbers next to a falling straight line, whose sum is exactly layers x average."""
    first = min(2 * average - average // beta, ceiling)
    last = 2 * average - first
    line = [first + Fraction((last - first) * i, num_layers - 1) for i in range(num_layers)]
    budgets = [floor(value) for value in line]
    missing = num_layers * average - sum(budgets)
    for i in sorted(range(num_layers), key=lambda i: (budgets[i] - line[i], i))[:missing]:
        budgets[i] += 1
    return budgets


def fewest_holding(attention: list[float], mass: float) -> int:
    """How few tokens, the largest first, hold so much of the attention."""
    held, number = 0.0, 0
    for share in sorted(attention, reverse=True):
        if held >= mass * sum(attention):
            break
        held, number = held + share, number + 1
    return number


def in_proportion(weights: list[Fraction], total: int, least: int, most: int) -> list[int]:
    """Whole numbers with this sum next to ``least`` and a part of the rest, none above ``most``."""
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(weights)) if i not in full]
        spare = total - most * len(full) - least * len(rest)
        ideal = {i: least + spare * weights[i] / sum(weights[j] for j in rest) for i in rest}
        above = {i for i in rest if ideal[i] > most}
        if not above:
            break
        full |= above
    budgets = [most if i in full else floor(ideal[i]) for i in range(len(weights))]
    missing = total - sum(budgets)
    for i in sorted(rest, key=lambda i: (budgets[i] - ideal[i], i))[:missing]:
        budgets[i] += 1
    return budgets
