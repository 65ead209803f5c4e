"""KVMerger in the extreme; tests/core/test_reference.py has its equations."""

from typing import Any

import pytest
import torch

from scope import Compression, ScopeError, patch
from scope.generation.session import Session
from tests.core.test_open_house import POOL, PROMPT, PROMPTS, STEPS, run
from tests.core.tiny import tiny_model
from tests.examples.uneven import Uneven


@pytest.mark.parametrize("budget", ["uniform", "pyramid", Uneven])
def test_where_no_keys_are_similar_enough_it_is_h2o(budget: Any) -> None:
    apart, held = run(
        Compression("KVMerger", "slide", budget=budget, least_similarity=1.01, **PROMPT, **POOL),
        PROMPTS,
    )
    h2o, expected = run(Compression("H2O", "slide", budget=budget, **PROMPT, **POOL), PROMPTS)
    assert torch.equal(apart, h2o)
    for after, expected_after in zip(held, expected, strict=True):
        assert all(map(torch.equal, after, expected_after))


def test_a_prompt_within_its_budget_is_whole() -> None:
    within = Compression("KVMerger", least_similarity=-1.0, max_capacity_prompt=40)
    logits, _ = run(within, PROMPTS)
    assert torch.equal(logits, run(Compression(), PROMPTS)[0])


@pytest.mark.parametrize("similarity", [-1.0, 0.3, 0.75])
@pytest.mark.parametrize("heavy_share", [0.0, 0.12, 1.0])
def test_the_budget_is_met_exactly(similarity: float, heavy_share: float) -> None:
    compression = Compression(
        "KVMerger", least_similarity=similarity, heavy_share=heavy_share, **PROMPT
    )
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        for layer in session.cache.layers:
            assert ((layer.positions >= 0).sum(dim=-1) == 20).all()
            for head in layer.positions.flatten(0, 1).tolist():
                assert len({position for position in head if position >= 0}) == 20


def test_a_wide_gaussian_is_the_mean_of_a_run() -> None:
    """Two tokens fewer than the prompt has: each head joins its two most similar pairs."""
    compression = Compression(
        "KVMerger",
        least_similarity=-1.0,
        sigma=1e6,
        heavy_share=0.0,
        max_capacity_prompt=38,
        window_size=4,
    )
    with patch(tiny_model("gqa")) as model:
        merged = Session(model, compression, PROMPTS[:1], STEPS)
        merged.prefill()
        full = Session(model, Compression(), PROMPTS[:1], STEPS)
        full.prefill()
        held, whole = merged.cache.layers[0], full.cache.layers[0]
    for head in range(2):
        kept = held.positions[0, head, :38].tolist()
        values = whole.values[0, head, :40]
        gone = sorted(set(range(40)) - set(kept))
        for slot, position in enumerate(kept):
            near = [p for p in gone if abs(p - position) == 1]
            if len(gone) == 2 and abs(gone[0] - gone[1]) > 3 and not near:
                torch.testing.assert_close(held.values[0, head, slot], values[position])
        for one in gone:
            pairs = [(values[one] + values[p]) / 2 for p in (one - 1, one + 1) if p in kept]
            slots = [kept.index(p) for p in (one - 1, one + 1) if p in kept]
            if abs(gone[0] - gone[1]) > 3:
                close = [
                    torch.allclose(held.values[0, head, s], pair, atol=1e-4)
                    for s, pair in zip(slots, pairs, strict=True)
                ]
                assert sum(close) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"sigma": 0.0}, "sigma is 0.0"), ({"heavy_share": 1.5}, "heavy_share is 1.5")],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("KVMerger", **options)
