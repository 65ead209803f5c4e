"""Budgets by the uncertainty of attention: sums, bounds, and what equals what."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scope import Compression, ScopeError, patch
from scope.budgets.zigzag import ZigZag
from scope.generation.session import Session
from tests.core.slow_reference import fewest_holding, in_proportion
from tests.core.tiny import random_tokens, tiny_model

SIZES = {"max_capacity_prompt": 20, "window_size": 4}


@given(
    fewest=st.lists(st.lists(st.integers(1, 200), min_size=2, max_size=2), min_size=1, max_size=9),
    capacity=st.integers(5, 60),
    longer=st.integers(-4, 200),
    least_share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    per_head=st.booleans(),
)
def test_budgets_are_in_proportion_and_their_sum_is_exact(
    fewest: list[list[int]], capacity: int, longer: int, least_share: float, per_head: bool
) -> None:
    length = capacity + longer
    budget = ZigZag(capacity, 4, least_share=least_share, per_head=per_head)
    shares = budget.share_out(torch.tensor(fewest), length)
    assert shares.shape == ((len(fewest), 2) if per_head else (len(fewest),))
    if length <= capacity:
        assert (shares == capacity).all()
        return
    assert shares.sum() == shares.size * capacity
    assert shares.min() >= max(4, int(least_share * capacity))
    assert shares.max() <= length
    weights = (
        [Fraction(n) for n in np.ravel(fewest)]
        if per_head
        else [Fraction(sum(heads), 2) for heads in fewest]
    )
    expected = in_proportion(weights, shares.size * capacity, budget.least, length)
    assert shares.ravel().tolist() == expected


@pytest.mark.parametrize("per_head", [False, True])
def test_even_uncertainty_gives_even_budgets(per_head: bool) -> None:
    budget = ZigZag(20, 4, per_head=per_head)
    assert (budget.share_out(torch.full((7, 3), 11), length=50) == 20).all()


@pytest.mark.parametrize("mass", [0.3, 0.9, 1.0])
def test_uncertainty_is_the_fewest_tokens_that_hold_the_mass(mass: float) -> None:
    class Watching(ZigZag):
        def observe(self, prompt: Any) -> torch.Tensor:
            seen.append((prompt.received(last=4), super().observe(prompt)))
            return seen[-1][1]

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    compression = Compression("SnapKV", budget=Watching, attention_mass=mass, **SIZES)
    with patch(tiny_model("gqa", dtype=torch.float64)) as model:
        Session(model, compression, [random_tokens(40, seed=1)], 2).prefill()
    assert len(seen) == 3
    for received, fewest in seen:
        expected = [fewest_holding(head, mass) for head in received.double().tolist()]
        if mass == 1.0:  # of which rounding decides how much the smallest add
            assert (fewest <= 40).all()
        else:
            assert fewest.tolist() == expected


def test_zigzagkv_is_snapkv_with_its_budget() -> None:
    named = Compression("ZigZagKV", "slide", **SIZES, decoding_window_size=6)
    composed = Compression("SnapKV", "slide", budget="zigzag", **SIZES, decoding_window_size=6)
    kept = []
    for compression in (named, composed):
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, [random_tokens(40, seed=2)], 4)
            session.prefill()
            kept.append([layer.opened().positions for layer in session.cache.layers])
    assert all(map(torch.equal, *kept))
    assert len({int((layer[0, 0] >= 0).sum()) for layer in kept[0]}) > 1, "layers differ"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_mass": 0.0}, "above 0 and at most 1"),
        ({"least_share": 1.5}, "from 0 to 1"),
        ({"window_size": 20}, "leaves no room in max_capacity_prompt 20"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("H2O", budget="zigzag", **(SIZES | options))


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("strategy", ["None", "slide", "discontinuous", "h2o"])
def test_memory_is_that_of_uniform_budgets(strategy: str, per_head: bool) -> None:
    """Whatever the shares are: two rows, two prompts, and one that is shorter than C."""
    prompts = [random_tokens(length, seed=length) for length in (40, 33, 11)]
    sizes = {**SIZES, "decoding_window_size": 6, "decoding_recent_size": 2}
    bytes_held, read = [], []
    for options in ({"budget": "uniform"}, {"budget": "zigzag", "per_head": per_head}):
        compression = Compression.from_shared("SnapKV", strategy, **sizes, **options)
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, prompts, 9, batch_size=2)
            session.prefill()
            cache = session.cache
            stored = {
                part.data_ptr(): part.untyped_storage().nbytes()
                for layer in cache.layers
                for part in (layer.keys, layer.values)
            }
            assert cache.kv_bytes == sum(stored.values())
            assert cache.kv_bytes == 2 * cache.plan.kv_bytes(torch.float32)
            bytes_held.append(cache.kv_bytes)
            session.step(torch.tensor([1, 2]))
            read.append(cache.held_bytes().tolist())
    assert bytes_held[0] == bytes_held[1]
    assert read[0] == read[1]


@pytest.mark.parametrize(
    "options",
    [{"per_head": False}, {"per_head": True}, {"per_head": True, "decode_bits": 8}],
    ids=["layers", "heads", "8 bits"],
)
def test_a_row_that_starts_over_is_as_new(options: dict[str, Any]) -> None:
    sizes = {**SIZES, "decoding_window_size": 6, "decoding_recent_size": 2}
    compression = Compression("SnapKV", "slide", budget="zigzag", **sizes, **options)
    prompts = [random_tokens(length, seed=length) for length in (40, 33, 27, 11)]

    def steps(session: Session, count: int, row: int) -> torch.Tensor:
        tokens = [torch.full((session.batch_size,), token) for token in range(count)]
        return torch.stack([session.step(token)[row] for token in tokens])

    with patch(tiny_model("gqa")) as model:
        used = Session(model, compression, prompts, 20, batch_size=2)
        used.admit(0, 0)
        used.admit(1, 1)
        steps(used, 9, 0)
        for prompt in (2, 3):
            used.release(1)
            steps(used, 1, 0)  # an idle row is fed with the others
            first = used.admit(1, prompt)
            alone = Session(model, compression, prompts, 20, batch_size=1)
            torch.testing.assert_close(first, alone.admit(0, prompt))
            expected = steps(alone, 1, 0)
            torch.testing.assert_close(steps(used, 1, 1), expected, rtol=1e-3, atol=1e-3)


def test_more_than_the_total_is_refused() -> None:
    class More(ZigZag):
        def share_out(self, seen: torch.Tensor, length: int) -> np.ndarray:
            return super().share_out(seen, length) + 1

    compression = Compression("SnapKV", budget=More, **SIZES)
    with patch(tiny_model("gqa")) as model, pytest.raises(ScopeError, match="never exceed"):
        Session(model, compression, [random_tokens(40, seed=1)], 4).prefill()
