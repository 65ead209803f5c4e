"""What scores that look through the last queries mean, in loops over positions of one sequence."""

from math import exp, hypot, inf

from torch import Tensor

from tests.core.slow_reference import Entry, SlowReference


class PeriodicReference(SlowReference):
    """Asks where the strategy cuts, and nowhere else."""

    def _worth(self, layer_idx: int, head: int, current: dict[int, float]) -> dict[int, float]:
        if self._limit(layer_idx) is None:
            return {}
        last = self.settings.last_queries
        entries = self.cache[layer_idx][head]
        position = entries[-1].position
        scores = getattr(self, f"_{self.score}")(layer_idx, head, entries)
        return {
            e.position: inf if e.position > position - last else scores.get(e.position, 0.0)
            for e in entries
        }

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


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (hypot(*a) * hypot(*b))
