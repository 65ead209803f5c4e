"""What scores that look through the last queries mean, in loops over positions of one sequence."""

from cmath import phase
from math import cos, exp, hypot, inf

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.core.slow_reference import Entry, SlowReference


class PeriodicReference(SlowReference):
    """Asks where the strategy cuts, and nowhere else."""

    def _worth(self, layer_idx: int, head: int, current: dict[int, float]) -> dict[int, float]:
        if self._limit(layer_idx, head, len(current)) is None:
            return {}
        entries = self.cache[layer_idx][head]
        scores = getattr(self, f"_{self.score}")(layer_idx, head, entries)
        if self.score in ("expected", "triattention"):
            return scores
        places = [e.position for e in entries]
        return {p: scores.get(p, 0.0) if self._is_old(p) else 1e6 + p for p in places}

    def _snapkv_decode(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        rows = self._attention(layer, head, entries)
        return near(self._older(added(rows, self.group)), max)

    def _morphkv(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        rows = self._attention(layer, head, entries)
        if self.settings.fusion == "sum":
            return added(rows, self.group)
        # The largest of each query head, averaged over the heads of the group.
        largest = [
            {p: max(row[p] for row in of_head) for p in of_head[0]}
            for of_head in by_head(rows, self.group)
        ]
        return {p: sum(of_head[p] for of_head in largest) / self.group for p in largest[0]}

    def _rkv(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        weight, count = self.settings.attention_weight, self.settings.last_queries
        old = [e for e in entries if self._is_old(e.position)]
        importance = added(self._attention(layer, head, old), self.group)
        importance = near({p: share / count for p, share in importance.items()}, max)
        keys = {e.position: e.key.tolist() for e in entries}
        means = dict.fromkeys(keys, 0.0)
        for one, its_key in keys.items():
            cosines = {p: cosine(its_key, key) for p, key in keys.items() if p != one}
            newest = max((p for p, similar in cosines.items() if similar > 0.5), default=None)
            for p, similar in cosines.items():
                means[p] += 0.0 if p == newest else similar / len(keys)
        total = sum(map(exp, means.values()))
        return {
            p: weight * importance[p] - (1 - weight) * exp(means[p]) / total for p in importance
        }

    def _rpc(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        # Heads hold the same of the generation; the prompts' tokens take no part.
        heads = range(len(self.cache[layer]))
        everywhere = []
        for other in heads:
            old = [
                e
                for e in self.cache[layer][other]
                if e.position >= self.length and self._is_old(e.position)
            ]
            everywhere.append(added(self._attention(layer, other, old), self.group))
        mean = {p: sum(of[p] for of in everywhere) / len(everywhere) for p in everywhere[0]}
        return near(mean, lambda around: sum(around) / 7)

    def _expected(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        now, ahead = self.length + self.step - 1, self.settings.foreseen
        size = len(entries[0].key)
        turns = [self._rotation(now + n) for n in range(1, ahead + 1)]
        mean_turn = sum(turns) / ahead
        received = dict.fromkeys((e.position for e in entries), 0.0)
        for number in range(head * self.group, (head + 1) * self.group):
            queries = self.queries[layer][number]
            steps = range(len(queries))[-self.settings.last_queries :]
            plain = [self._rotation(self.length + s).T @ queries[s] for s in steps]
            mean = sum(plain) / len(plain)
            covariance = sum(torch.outer(q - mean, q - mean) for q in plain) / len(plain)
            mean, covariance = mean_turn @ mean, mean_turn @ covariance @ mean_turn.T
            logits = {
                e.position: float(e.key @ mean) / size**0.5
                + float(e.key @ covariance @ e.key) / (2 * size)
                for e in entries
            }
            total = sum(map(exp, logits.values()))
            for p, logit in logits.items():
                received[p] += exp(logit) / total / self.group
        return {e.position: received[e.position] * hypot(*e.value.tolist()) for e in entries}

    def _triattention(self, layer: int, head: int, entries: list[Entry]) -> dict[int, float]:
        file = load_file(self.settings.calibration)
        paces = self.model.model.rotary_emb.inv_freq.tolist()
        now = self.length + self.step - 1
        highest = dict.fromkeys((e.position for e in entries), -inf)
        for number in range(head * self.group, (head + 1) * self.group):
            query = pairs(file[f"mean_query.{layer}"][number])
            spread = file[f"spread.{layer}"][number].tolist()
            scores = {}
            for e in entries:
                key = pairs(self._rotation(e.position).T @ e.key)
                score = 0.0
                for q, k, wide, pace in zip(query, key, spread, paces, strict=True):
                    phi = phase(q * k.conjugate())
                    angles = [pace * (now + 2**i - e.position) + phi for i in range(17)]
                    score += abs(q) * abs(k) * sum(map(cos, angles)) / 17 + wide * abs(k)
                scores[e.position] = score
            may = [s for p, s in scores.items() if self.unified or p >= self.length]
            mean = sum(may) / len(may)
            deviation = (sum((s - mean) ** 2 for s in may) / len(may)) ** 0.5
            for p, score in scores.items():
                highest[p] = max(highest[p], (score - mean) / max(deviation, 1e-6))
        return highest

    def _rotation(self, position: int) -> Tensor:
        """RoPE as a matrix ``[D, D]``."""
        angles = self.model.model.rotary_emb.inv_freq.double() * position
        cos, sin = angles.cos().diag(), angles.sin().diag()
        return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])

    # --- what they have in common -----------------------------------------------------------------

    def _is_old(self, position: int) -> bool:
        return position <= self.length + self.step - 1 - self.settings.last_queries

    def _older(self, scores: dict[int, float]) -> dict[int, float]:
        return {p: score for p, score in scores.items() if self._is_old(p)}

    def _attention(self, layer: int, head: int, among: list[Entry]) -> list[dict[int, float]]:
        """One after the other for every query head of the group and every one of its last w."""
        rows = []
        for number in range(head * self.group, (head + 1) * self.group):
            queries = self.queries[layer][number]
            for step in range(len(queries))[-self.settings.last_queries :]:
                position = self.length + step
                rows.append(self._shares(queries[step], among, position))
        return rows

    def _shares(self, query: Tensor, among: list[Entry], position: int) -> dict[int, float]:
        window = getattr(self.model.config, "sliding_window", None) or position + 1
        logits = {
            e.position: float(query @ e.key) / len(query) ** 0.5
            for e in among
            if position - window < e.position <= position
        }
        total = sum(map(exp, logits.values()))
        return {e.position: exp(logits[e.position]) / total if e.position in logits else 0.0
                for e in among}  # fmt: skip


def by_head(rows: list[dict[int, float]], group: int) -> list[list[dict[int, float]]]:
    count = len(rows) // group
    return [rows[i * count : (i + 1) * count] for i in range(group)]


def added(rows: list[dict[int, float]], group: int) -> dict[int, float]:
    """Over queries, and averaged over the query heads of a group."""
    return {p: sum(row[p] for row in rows) / group for p in rows[0]}


def near(scores: dict[int, float], reduce: object) -> dict[int, float]:
    """Each becomes what is made of itself and the three before and after it."""
    order = sorted(scores)
    return {
        p: reduce([scores[q] for q in order[max(i - 3, 0) : i + 4]]) for i, p in enumerate(order)
    }


def pairs(state: Tensor) -> list[complex]:
    first, second = state.double().chunk(2)
    return [complex(x, y) for x, y in zip(first.tolist(), second.tolist(), strict=True)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (hypot(*a) * hypot(*b))
