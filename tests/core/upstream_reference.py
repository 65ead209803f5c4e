"""What the published SCOPE code does, in the plainest code: one sequence, lists and loops.

Every query head has a cache of its own: a list in the order of the published cache, because what a
strategy never evicts is told there by place. Of equal scores the later token wins, unlike in the
product: the published code leaves them to `torch.topk`, so nothing may depend on it.

What the class counters carry from one example into the next is left out.
"""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression
from tests.core.slow_reference import Entry, SlowReference, Step, column_sums, weigh

PLUG_IN_DELTA = 15
ALLOWED_PAIRS = [
    *product(
        ("ALLKV", "SnapKV", "PyramidKV", "H2O"), ("None", "slide", "adaptive", "discontinuous")
    ),
    ("H2O", "h2o"),
    ("PyramidInfer", "None"),
    ("PyramidInfer", "pyramidinfer"),
    ("StreamingLLM", "None"),
    ("StreamingLLM", "slm"),
]


class UpstreamReference(SlowReference):
    """Reads a prompt, then one token at a time; the arguments are those of `SlowReference`.

    Attributes:
        prompt_scores: what the prompt's tokens competed by, ``[layer][head]``; empty lists where
            they did not.
    """

    def __init__(self, model: PreTrainedModel, compression: Compression, total: int) -> None:
        super().__init__(model, compression, total)
        self.capacity = self.settings.max_capacity_prompt
        self.last = self.settings.window_size
        self.window = self.settings.decoding_window_size
        self.recent = self.settings.decoding_recent_size
        if compression.method in ("SnapKV", "PyramidKV"):
            self.delta = PLUG_IN_DELTA
        else:
            self.delta = self.settings.delta or (total - self.recent) // (self.window - self.recent)

    @torch.no_grad()
    def read_prompt(self, prompt: list[int]) -> Step:
        self.length, self.step = len(prompt), 0
        # All layers count in the same three: calls, calls let pass, and layers that have selected.
        self.calls = self.passed = self.selected = 0
        self.cache, self.prompt_scores, self.working = [], [], []
        everyone = list(range(self.length))
        hidden = self.model.model.embed_tokens(torch.tensor([prompt]))
        for layer_idx, layer in enumerate(self.model.model.layers):
            queries, *shared = self._project(layer, hidden, everyone)
            keys, values = (self._repeat(states) for states in shared)
            outputs, caches, scores = [], [], []
            for own, k, v in zip(queries, keys, values, strict=True):
                attention = [self._attend(q, list(k), everyone, i) for i, q in enumerate(own)]
                outputs.append(torch.stack([weigh(row, list(v)) for row in attention]))
                scores.append(self._score_prompt(own, k))
                caches.append(
                    [Entry(p, k[p], v[p], 0.0) for p in self._keep(layer_idx, scores[-1])]
                )
            hidden = self._finish(layer, hidden, outputs)
            self.cache.append(caches)
            self.prompt_scores.append(scores)
        return self._result(hidden)

    @torch.no_grad()
    def read_token(self, token: int) -> Step:
        position = self.length + self.step
        self.step += 1
        hidden = self.model.model.embed_tokens(torch.tensor([[token]]))
        for layer_idx, layer in enumerate(self.model.model.layers):
            queries, *shared = self._project(layer, hidden, [position])
            keys, values = (self._repeat(states) for states in shared)
            outputs, attention = [], []
            for head, entries in enumerate(self.cache[layer_idx]):
                entries.append(Entry(position, keys[head][0], values[head][0], 0.0))
                held = [entry.position for entry in entries]
                row = self._attend(queries[head][0], [e.key for e in entries], held, position)
                outputs.append(weigh(row, [entry.value for entry in entries])[None])
                attention.append(row)
            cut = self._cut(layer_idx, len(attention[0]))
            if cut is not None:
                self.cache[layer_idx] = [
                    self._select(entries, row, *cut)
                    for entries, row in zip(self.cache[layer_idx], attention, strict=True)
                ]
            hidden = self._finish(layer, hidden, outputs)
        return self._result(hidden)

    def _repeat(self, states: list[Tensor]) -> list[Tensor]:
        """From one per KV head to one per query head."""
        return [head for head in states for _ in range(self.group)]

    # --- the prompt -------------------------------------------------------------------------------

    def _score_prompt(self, queries: Tensor, keys: Tensor) -> list[float]:
        """Of each token before the last w, or nothing where the method does not rank."""
        if self.settings.method in ("ALLKV", "StreamingLLM") or self.length < self.capacity:
            return []
        before = self.length - self.last
        if self.settings.method in ("SnapKV", "PyramidKV"):
            return self._smooth(column_sums(self._look(queries, keys, range(before, self.length))))
        return column_sums(self._look(queries, keys, range(self.length)))

    def _look(self, queries: Tensor, keys: Tensor, rows: range) -> list[list[float]]:
        """Attention of these queries to the tokens before the last w.

        Only the last w queries cannot look ahead.
        """
        before = self.length - self.last
        attention = []
        for row in rows:
            visible = keys if row < before else keys[: row + 1]
            logits = visible @ queries[row] / keys.shape[1] ** 0.5
            attention.append(logits.softmax(dim=0)[:before].tolist())
        return attention

    def _keep(self, layer_idx: int, scores: list[float]) -> list[int]:
        """Positions in the order of the cache."""
        if self.settings.method == "ALLKV" or self.length < self.capacity:
            return list(range(self.length))
        last = list(range(self.length - self.last, self.length))
        if self.settings.method == "StreamingLLM":
            return list(range(self.capacity - self.last)) + last
        return highest(scores, self._num_chosen(layer_idx)) + last

    def _num_chosen(self, layer_idx: int) -> int:
        average = self.capacity - self.last
        if self.settings.method in ("SnapKV", "H2O"):
            return average
        if self.length < 2 * average:
            return average if self.settings.method == "PyramidKV" else self.capacity
        lowest = average // 20
        most = 2 * average - lowest
        if most >= self.length - self.last:
            most = self.length - self.last
            lowest = 2 * average - most
        return most - layer_idx * ((most - lowest) // self.num_layers)

    # --- the generation ---------------------------------------------------------------------------

    def _cut(self, layer_idx: int, count: int) -> tuple[int, int] | None:
        """How many first entries are safe and how many stay in all; None if none is chosen."""
        prompt = self.length if self.settings.method == "ALLKV" else self.capacity
        safe, size = prompt, prompt + self.window
        match self.settings.decoding_metric:
            case "None":
                return None
            case "h2o":
                safe = 0
            case "slm":
                safe = size - self.recent
            case "pyramidinfer":
                safe = 0
                if count >= max(size, 2 * (prompt - self.recent) + self.window):
                    average = size - self.recent
                    lowest = average // 2
                    most = 2 * average - lowest
                    chosen = most - layer_idx * ((most - lowest) // self.num_layers) + self.window
                    size = min(chosen, count - self.recent) + self.recent
            case "adaptive" | "discontinuous" as metric:
                size = prompt + self.recent + self.calls // (self.delta * self.num_layers)
                self.calls += 1
                if metric == "discontinuous" and count >= size and not self._clock():
                    return None
        return (safe, size) if count >= size else None

    def _clock(self) -> bool:
        """Whether a layer that is over its window selects now."""
        if self.passed < self.delta * self.num_layers:
            self.passed += 1
            return False
        self.selected += 1
        if self.selected == self.num_layers:
            self.passed = self.selected = 0
        return True

    def _select(self, entries: list[Entry], row: list[float], safe: int, size: int) -> list[Entry]:
        end = len(entries) - self.recent
        chosen = highest(row[safe:end], size - self.recent - safe)
        return entries[:safe] + [entries[safe + i] for i in chosen] + entries[end:]


def highest(scores: list[float], count: int) -> list[int]:
    """Places of the highest scores, in falling order."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)[:count]


def record(
    model: PreTrainedModel, compression: Compression, prompt: list[int], forced: list[int]
) -> dict[str, NDArray]:
    """A teacher-forced run of the reference, as the arrays of a golden file.

    T tokens are fed after a prompt of L. ``logits [T+1, vocabulary]``, ``cache_len`` and
    ``attended_len [T+1, N]``, ``kept_mask [T+1, N, H, (L+T)/8]`` in packed bits; per layer
    ``prefill_kept`` and ``final_kept [H, n]`` positions in the order of the cache, and
    ``prefill_score [H, L-w]`` where the prompt was ranked.
    """
    reference = UpstreamReference(model, compression, len(forced))
    steps = [reference.read_prompt(prompt), *(reference.read_token(token) for token in forced)]
    cache_len = np.array([[len(heads[0]) for heads in step.kept] for step in steps], np.int32)
    attended = np.concatenate([np.full_like(cache_len[:1], len(prompt)), cache_len[:-1] + 1])
    held = np.zeros(
        (*cache_len.shape, len(steps[0].kept[0]), len(prompt) + len(forced)), dtype=bool
    )
    for i, step in enumerate(steps):
        for layer_idx, heads in enumerate(step.kept):
            for head, positions in enumerate(heads):
                held[i, layer_idx, head, positions] = True
    arrays = {
        "logits": np.array([step.logits.tolist() for step in steps], np.float32),
        "cache_len": cache_len,
        "attended_len": attended,
        "kept_mask": np.packbits(held, axis=-1),
    }
    for layer_idx, scores in enumerate(reference.prompt_scores):
        arrays[f"prefill_kept_{layer_idx}"] = np.array(steps[0].kept[layer_idx], np.int16)
        arrays[f"final_kept_{layer_idx}"] = np.array(steps[-1].kept[layer_idx], np.int16)
        if scores[0]:
            arrays[f"prefill_score_{layer_idx}"] = np.array(scores, np.float32)
    return arrays
