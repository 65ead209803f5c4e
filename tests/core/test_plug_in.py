"""A compressor and a strategy that are combined both act: the published plug-in rows did not."""

import pytest

from scope import Compression, Fidelity
from scope.cache.plan import slots_needed
from scope.registry import COMPRESSORS

PROMPT_LENGTHS = [2464, 2657, 3061, 4000]  # of LongGenBench's GSM8K+, and a little beyond
NUM_LAYERS = 32


def kept(method: str, prompt_length: int, fidelity: str = "paper") -> list[int]:
    compression = Compression(method, fidelity=Fidelity.preset(fidelity))
    capacities = compression.recipe(4096).budget.ceiling(prompt_length, NUM_LAYERS)
    return [min(capacity, prompt_length) for capacity in capacities]


@pytest.mark.parametrize("method", ["PyramidKV", "PyramidInfer"])
@pytest.mark.parametrize("prompt_length", PROMPT_LENGTHS)
def test_a_pyramid_is_one_at_longgenbench_lengths(method: str, prompt_length: int) -> None:
    budgets = kept(method, prompt_length)
    assert budgets != kept("SnapKV", prompt_length) == [2048] * NUM_LAYERS
    assert sum(budgets) == NUM_LAYERS * 2048
    assert budgets == sorted(budgets, reverse=True)
    assert 8 <= budgets[-1] < 2048 < budgets[0] <= prompt_length


@pytest.mark.parametrize("method", ["PyramidKV", "PyramidInfer"])
def test_a_pyramid_ends_at_a_twentieth_where_the_prompt_is_long(method: str) -> None:
    budgets = kept(method, 8000)
    assert (budgets[0], budgets[-1]) == (8 + 2 * 2040 - 102, 8 + 102)


@pytest.mark.parametrize("prompt_length", PROMPT_LENGTHS)
def test_upstream_pyramidkv_is_snapkv_there(prompt_length: int) -> None:
    snapkv = kept("SnapKV", prompt_length, "upstream")
    assert kept("PyramidKV", prompt_length, "upstream") == snapkv


def adaptive_pools(method: str, window: int, fidelity: str = "paper") -> list[int]:
    compression = Compression(
        method,
        "adaptive",
        decoding_window_size=window,
        decoding_recent_size=256,
        fidelity=Fidelity.preset(fidelity),
    )
    slots = slots_needed(compression.recipe(4096), 4096, NUM_LAYERS, [2657])
    return [n - prompt for n, prompt in zip(slots, kept(method, 2657, fidelity), strict=True)]


@pytest.mark.parametrize("method", COMPRESSORS)
def test_adaptive_obeys_its_window_with_every_compressor(method: str) -> None:
    assert adaptive_pools(method, 512) == [512] * NUM_LAYERS
    assert adaptive_pools(method, 1024) == [1024] * NUM_LAYERS


@pytest.mark.parametrize("method", ["SnapKV", "PyramidKV"])
def test_upstream_adaptive_ignores_its_window_there(method: str) -> None:
    assert adaptive_pools(method, 512, "upstream") == adaptive_pools(method, 1024, "upstream")
