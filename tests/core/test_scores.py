"""Decoding scores against lists and loops from their papers' equations, and against kernels."""

import math
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, patch
from scope.generation.session import Session
from tests.core.slow_reference import Entry, SlowReference
from tests.core.test_open_house import PROMPTS, check_kernels, run
from tests.core.test_reference import SIZES, check
from tests.core.tiny import random_tokens, tiny_model

STEPS, LENGTHS = 16, [8, 22]
SCORES: dict[str, dict[str, Any]] = {
    "decayed": {"decay": 0.7},
    "max_decay": {"decay": 0.7},
    "value_norm": {},
    "cumulative_value_norm": {},
    "value_range": {"large": 0.4, "decay": 0.7},
    "recurrence": {"attended_above": 0.05},
    "last_attended": {"attended_above": 0.05},
    "fresh_random": {"seed": 3},
}
STRATEGIES = ["slide", "adaptive", "discontinuous", "h2o", "pyramidinfer"]
every_score = pytest.mark.parametrize("score", SCORES)


class ScoreReference(SlowReference):
    """With what these scores remember of every token, by layer, head and position."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory: dict[tuple[int, int, int], dict[str, float]] = {}

    def _compress(
        self,
        layer_idx: int,
        head: int,
        attention: list[list[list[float]]],
        keys: Tensor,
        values: Tensor,
    ) -> list[Entry]:
        entries = super()._compress(layer_idx, head, attention, keys, values)
        group = attention[head * self.group : (head + 1) * self.group]
        for rank, entry in enumerate(entries):
            columns = [[row[entry.position] for row in rows] for rows in group]
            self._begin(layer_idx, head, entry, rank)
            if self.unified:
                self.memory[layer_idx, head, entry.position] |= {
                    "sum": sum(map(sum, columns)) / self.group,
                    "peak": sum(column[-1] for column in columns) / self.group,
                    "last": self.length - 1,
                }
        self.kept = len(entries)
        return entries

    def _begin(self, layer_idx: int, head: int, entry: Entry, rank: int) -> None:
        value = entry.value.tolist()
        begun = {"rank": rank, "sum": 0.0, "peak": 0.0, "gap": 0, "last": entry.position}
        begun |= {"norm": sum(map(abs, value)), "range": max(value) - min(value)}
        self.memory[layer_idx, head, entry.position] = begun

    def _worth(self, layer_idx: int, head: int, current: dict[int, float]) -> dict[int, float]:
        now, rank = self.length + self.step - 1, self.kept + self.step - 1
        self._begin(layer_idx, head, self.cache[layer_idx][head][-1], rank)
        options = vars(self.settings)
        decay = options.get("decay", 1.0)
        held = {p: self.memory[layer_idx, head, p] for p in current}
        for position, token in held.items():
            attention = current[position]
            token["sum"] = decay * token["sum"] + attention
            token["peak"] = max(decay * token["peak"], attention)
            if attention > options.get("attended_above", 1.0):
                token["gap"] = max(token["gap"], now - token["last"])
                token["last"] = now
        if self.score == "value_range":
            return self._value_range(layer_idx, head, held)
        worth = {
            "decayed": lambda p, token: token["sum"],
            "max_decay": lambda p, token: token["peak"],
            "value_norm": lambda p, token: current[p] * token["norm"],
            "cumulative_value_norm": lambda p, token: token["sum"] * token["norm"],
            "recurrence": lambda p, token: overdue(now - token["last"], token["gap"]),
            "last_attended": lambda p, token: token["last"],
            "fresh_random": lambda p, token: self._drawn(layer_idx, head, token["rank"], rank),
        }[self.score]
        return {position: worth(position, token) for position, token in held.items()}

    def _value_range(
        self, layer_idx: int, head: int, held: dict[int, dict[str, float]]
    ) -> dict[int, float]:
        frozen = 0 if self.unified else min(self._capacity(layer_idx, head), self.length)
        candidates = list(held)[frozen : -self.settings.decoding_recent_size]
        ranges = sorted((held[p]["range"] for p in candidates), reverse=True)
        wanted = int(self.settings.large * len(candidates))
        # The same token twice has one range in the first layer, so ties are common.
        large = [p for p in candidates if wanted and held[p]["range"] >= ranges[wanted - 1]]
        worth = {}
        for position, token in held.items():
            uniform = (self._drawn(layer_idx, head, token["rank"]) + 0.5) / 2**24
            gumbel = -math.log(-math.log(uniform))
            worth[position] = math.log(token["sum"]) + gumbel if token["sum"] else -math.inf
            if position in large:
                worth[position] = 1e6 + token["range"]
        return worth

    def _drawn(self, layer_idx: int, head: int, rank: float, step: float = 0) -> int:
        chance = self.draw + 1_000_003 * head + 1_000_000_007 * layer_idx
        return mixed(mixed(int(rank)) + chance + 1_000_000_021 * int(step)) >> 8


def overdue(pause: float, gap: float) -> float:
    """LazyEviction's two terms."""
    longest = max(gap, 1)
    return 2 / (1 + math.exp(pause / longest)) + 2 / (1 + math.exp(1 / longest))


def mixed(number: int) -> int:
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return number ^ (number >> 16)


def compression_of(score: str, method: str, strategy: str) -> Compression:
    chosen = {"decoding_score": score, **SCORES[score]}
    return Compression.from_shared(method, strategy, **SIZES, **chosen)


@every_score
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_in_the_papers_equations(score: str, strategy: str) -> None:
    compression = compression_of(score, "H2O", strategy)
    model = tiny_model("gqa", 11, num_layers=2, dtype=torch.float64)
    prompts = [random_tokens(length, seed=length) for length in LENGTHS]
    forced = torch.tensor([random_tokens(STEPS, seed=300 + length) for length in LENGTHS])
    references = [ScoreReference(model, compression, STEPS) for _ in prompts]
    expected = [r.read_prompt(p) for r, p in zip(references, prompts, strict=True)]
    with patch(model):
        session = Session(model, compression, prompts, STEPS)
        check(session.cache, session.prefill(), expected, "after the prompt")
        for row, reference in enumerate(references):
            reference.draw = int(session.cache.layers[0].draw[row])
        for step, tokens in enumerate(forced.T, start=1):
            logits = session.step(tokens)
            expected = [r.read_token(t) for r, t in zip(references, tokens.tolist(), strict=True)]
            check(session.cache, logits, expected, f"after step {step}")


@pytest.mark.parametrize(
    ("score", "strategy"),
    [
        *((score, "slide") for score in SCORES),
        *zip(SCORES, cycle(["h2o", "adaptive", "discontinuous", "pyramidinfer"])),
    ],
)
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_kernels_give_the_same(score: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(compression_of(score, "H2O", strategy), monkeypatch)


@every_score
def test_batch_equals_single(score: str) -> None:
    compression = compression_of(score, "SnapKV", "slide")
    together, held = run(compression, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone, held_alone = run(compression, [prompt])
        torch.testing.assert_close(together[:, row], alone[:, 0], rtol=1e-4, atol=1e-4)
        for layer, own in zip(held[-1], held_alone[-1], strict=True):
            assert layer[row][layer[row] >= 0].tolist() == own[0][own[0] >= 0].tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("decay", "known"), [(0.0, "current"), (1.0, "cumulative")])
def test_decay_of_all_or_nothing(strategy: str, decay: float, known: str) -> None:
    logits, held = run(
        Compression("ALLKV", strategy, decoding_score="decayed", decay=decay, **_POOL), PROMPTS
    )
    theirs = Compression("ALLKV", strategy, decoding_score=known, **_POOL)
    expected, expected_held = run(theirs, PROMPTS)
    assert torch.equal(logits, expected)
    for after, expected_after in zip(held, expected_held, strict=True):
        assert all(map(torch.equal, after, expected_after))


_POOL = {"decoding_window_size": 6, "decoding_recent_size": 2}


def test_fresh_draws_forget_and_fixed_ones_do_not() -> None:
    ages = {}
    for score in ("random", "fresh_random"):
        compression = Compression(
            "ALLKV",
            "slide",
            decoding_score=score,
            decoding_window_size=20,
            decoding_recent_size=4,
        )
        prompts = [random_tokens(6, seed=seed) for seed in range(4)]
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, prompts, 90)
            session.prefill()
            for step in range(90):
                session.step(torch.full((4,), step))
            held = torch.stack([layer.positions for layer in session.cache.layers])
        ages[score] = 95 - held[(held >= 6) & (held < 92)].float().mean()
    # Fixed: uniform over 4 to 89, so 46.5. Fresh: a 17th of the 16 leaves a step, so 4 + 16.
    assert ages["random"] == pytest.approx(46.5, abs=4)
    assert ages["fresh_random"] == pytest.approx(20, abs=4)


@pytest.mark.parametrize("score", [*SCORES, "current", "cumulative", "recent", "random"])
@pytest.mark.parametrize(("method", "strategy"), [("SnapKV", "slide"), ("H2O", "h2o")])
def test_shared_heads_hold_the_same(method: str, strategy: str, score: str) -> None:
    compression = Compression.from_shared(
        method, strategy, **SIZES, decoding_score=score, share_heads=True
    )
    _, held = run(compression, PROMPTS)
    for after in held:
        for layer in after:
            assert torch.equal(layer[:, :1].expand_as(layer), layer)


@pytest.mark.parametrize("strategy", ["slide", "h2o"])
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_shared_heads_with_kernels(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compression = Compression.from_shared(
        "SnapKV", strategy, **SIZES, decoding_score="cumulative", share_heads=True
    )
    check_kernels(compression, monkeypatch)


def test_heads_that_cannot_share_are_refused() -> None:
    from tests.examples.uneven import Uneven

    compression = Compression("SnapKV", budget=Uneven, **_PROMPT, share_heads=True)
    with pytest.raises(ScopeError, match="leave share_heads out"):
        run(compression, PROMPTS)


_PROMPT = {"max_capacity_prompt": 20, "window_size": 4}


def test_shared_heads_are_in_the_label_and_the_settings() -> None:
    shared = Compression("ALLKV", "slide", share_heads=True)
    assert shared.label == "ALLKV+slide (current, share_heads True)"
    assert shared.settings()["share_heads"] is True
    assert "share_heads" not in Compression("ALLKV", "slide").settings()


@pytest.mark.parametrize(
    ("score", "name"),
    [
        ("decayed", "decay"),
        ("max_decay", "decay"),
        ("value_range", "decay"),
        ("value_range", "large"),
        ("recurrence", "attended_above"),
    ],
)
def test_a_share_is_between_0_and_1(score: str, name: str) -> None:
    with pytest.raises(ScopeError, match=f"{name} is 2"):
        Compression("ALLKV", "slide", decoding_score=score, **{name: 2})
