"""What the shipped model shows of SCOPE's two observations, on prompts it has never seen.

All caches have the same total budget, 131 + 64 tokens; the prompt has 131. Synthetic.
"""

from functools import cache

import numpy as np
import pytest

from scope import Compression, patch
from scope.evaluation.statistics import Estimate, estimate
from scope.harness.models import load_model, load_tokenizer
from scope.plots.accuracy import recall_marks
from scope.plots.example import RECALL_MODEL

PROMPTS, SEED = 24, 20261122
UNIFIED = ("h2o", "slm", "pyramidinfer")


@cache
def accuracies(method: str, strategy: str, decoding_score: str | None = None) -> tuple[float, ...]:
    """Share of right sums in each prompt's answers."""
    compression = Compression.from_shared(
        method,
        strategy,
        max_capacity_prompt=98,
        decoding_window_size=64,
        decoding_recent_size=24,
        decoding_score=decoding_score,
    )
    tokenizer = load_tokenizer(str(RECALL_MODEL))
    with patch(load_model(str(RECALL_MODEL), "float32", "cpu", "sdpa")) as model:
        marks = recall_marks(model, tokenizer, compression, PROMPTS, SEED)
    return tuple(marks.mean(axis=1))


def difference(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Estimate:
    return estimate(np.subtract(ours, theirs))


def test_full_cache_answers() -> None:
    assert estimate(accuracies("ALLKV", "None")).mean >= 99


@pytest.mark.parametrize("method", ["SnapKV", "PyramidKV", "H2O", "PyramidInfer", "StreamingLLM"])
def test_compressing_the_prompt_fails(method: str) -> None:
    """To three quarters of its tokens, with nothing evicted afterwards."""
    _, high = estimate(accuracies(method, "None")).interval
    assert high < 50


@pytest.mark.parametrize("unified", UNIFIED)
def test_a_pool_of_its_own_with_cumulative_scores_beats(unified: str) -> None:
    own = accuracies("ALLKV", "slide", "cumulative")
    low, _ = difference(own, accuracies("ALLKV", unified)).interval
    assert low > 0


def test_with_current_scores_it_loses_to_chance_and_does_not_beat_age() -> None:
    """Whether it beats unified H2O differs from one trained model to the next."""
    own = accuracies("ALLKV", "slide", "current")
    _, high = difference(own, accuracies("ALLKV", "slide", "random")).interval
    assert high < 0
    low, _ = difference(own, accuracies("ALLKV", "slide", "recent")).interval
    assert low <= 0


@pytest.mark.parametrize("control", ["recent", "random"])
def test_cumulative_scores_beat_the_controls(control: str) -> None:
    own = accuracies("ALLKV", "slide", "cumulative")
    low, _ = difference(own, accuracies("ALLKV", "slide", control)).interval
    assert low > 0
