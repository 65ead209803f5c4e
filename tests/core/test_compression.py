"""Configurations: names in any case, defaults, and one clear line for each bad one."""

from dataclasses import fields
from typing import Any

import pytest

from scope import Compression, Fidelity, ScopeError
from scope.registry import COMPRESSORS, STRATEGIES
from tests.core.tiny import PAIRS


def test_the_original_methods_and_strategies_are_there() -> None:
    assert set(COMPRESSORS) >= {
        "ALLKV", "SnapKV", "PyramidKV", "PyramidInfer", "H2O", "StreamingLLM",
        "LoCoCo", "KVMerger",
    }  # fmt: skip
    assert set(STRATEGIES) >= {
        "None", "slide", "adaptive", "discontinuous", "h2o", "slm", "pyramidinfer",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_names_are_found_in_any_case(method: str, strategy: str) -> None:
    compression = Compression(method.upper(), strategy.title())
    assert compression == Compression(method.lower(), strategy)
    assert (compression.method, compression.decoding_metric) == (method, strategy)
    recipe = compression.recipe(4096)
    assert (recipe.compressor.name, recipe.strategy.name) == (method, strategy)


def test_cumulative_scores_are_h2os_own() -> None:
    def score(strategy: str, **settings: Any) -> str | None:
        return Compression("SnapKV", strategy, **settings).decoding_score

    assert {s: score(s) for s in STRATEGIES} == {
        "None": None,
        "slide": "current",
        "adaptive": "current",
        "discontinuous": "current",
        "periodic": "snapkv_decode",
        "rpc": "rpc",
        "h2o": "cumulative",
        "slm": "recent",
        "pyramidinfer": "current",
        "refreshkv": None,
        "lococo": "cumulative",
    }
    assert score("h2o", fidelity="upstream") == "current"
    assert score("slide", decoding_score="cumulative") == "cumulative"
    assert score("h2o", decoding_score="current") == "current"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "SnapKW"}, ["SnapKW", "SnapKV", "StreamingLLM"]),
        ({"decoding_metric": "glide"}, ["glide", "slide", "discontinuous"]),
        (
            {"decoding_metric": "slide", "decoding_window_size": 256, "decoding_recent_size": 256},
            ["256", "smaller"],
        ),
        (
            {"decoding_metric": "slide", "decoding_recent_size": 0},
            ["decoding_recent_size", "at least 1"],
        ),
        ({"method": "H2O", "window_size": 8, "max_capacity_prompt": 8}, ["window_size 8"]),
        ({"method": "H2O", "window_size": 0}, ["window_size"]),
        ({"method": "H2O", "window_size": 2.5}, ["window_size", "2.5", "whole number"]),
        ({"method": "H2O", "window_size": True}, ["window_size", "True", "whole number"]),
        ({"method": "H2O", "max_capacity_prompt": 0}, ["max_capacity_prompt", "at least 1"]),
        ({"method": "StreamingLLM", "max_capacity_prompt": 4}, ["4", "sinks", "larger"]),
        ({"method": "SnapKV", "kernel_size": 4}, ["kernel_size", "odd"]),
        ({"method": "SnapKV", "kernel_size": -1}, ["kernel_size", "odd"]),
        ({"method": "SnapKV", "pooling": "meanpool"}, ["meanpool", "maxpool", "avgpool"]),
        ({"method": "SnapKV", "group_reduction": "sum"}, ["sum", "mean", "max"]),
        (
            {"decoding_metric": "slide", "decoding_score": "age"},
            ["age", "current", "cumulative"],
        ),
        ({"method": "SnapKV", "budget": "square"}, ["square", "uniform", "pyramid"]),
        # What nobody reads.
        ({"window_size": 8}, ["window_size", "not an option", "ALLKV+None"]),
        ({"method": "H2O", "kernel_size": 3}, ["kernel_size", "H2O+None", "leave it out"]),
        ({"method": "SnapKV", "decoding_window_size": 4}, ["decoding_window_size", "SnapKV+None"]),
        ({"method": "SnapKV", "seed": 4}, ["seed", "SnapKV+None"]),
        ({"decoding_metric": "adaptive", "delta": 4}, ["delta", "ALLKV+adaptive"]),
        ({"decoding_metric": "slm", "decoding_recent_size": 4}, ["decoding_recent_size"]),
        ({"decoding_metric": "slm", "decoding_score": "cumulative"}, ["decoding_score", "slm"]),
        ({"budget": "uniform"}, ["budget", "ALLKV"]),
        ({"fidelity": "published"}, ["published", "upstream"]),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScopeError) as refused:
        Compression(**settings)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("window", [2, 3, 64, 1024])
def test_half_of_the_window_is_recent_by_default(window: int) -> None:
    options = Compression("H2O", "slide", decoding_window_size=window).options
    assert options["decoding_recent_size"] == window // 2


def test_a_score_goes_with_any_budget() -> None:
    pyramid = Compression("SnapKV", budget="pyramid")
    assert pyramid.recipe(9).budget == Compression("PyramidKV").recipe(9).budget
    flat = Compression("PyramidInfer", budget="uniform")
    assert flat.recipe(9).budget == Compression("H2O").recipe(9).budget


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "ALLKV+None"),
        ({"decoding_metric": "slm"}, "ALLKV+slm"),
        ({"method": "h2o", "decoding_metric": "slide"}, "H2O+slide (current)"),
        (
            {"method": "snapkv", "budget": "pyramid", "kernel_size": 5, "max_capacity_prompt": 99},
            "SnapKV+None (pyramid, kernel_size 5)",
        ),
        (
            {"decoding_metric": "slide", "decoding_score": "random", "seed": 3},
            "ALLKV+slide (random, seed 3)",
        ),
        ({"decoding_metric": "h2o", "fidelity": "upstream"}, "ALLKV+h2o (current, upstream)"),
        (
            {"method": "H2O", "fidelity": Fidelity(causal_prefill_scores=False)},
            "H2O+None (causal_prefill_scores False)",
        ),
    ],
)
def test_a_label_says_what_was_chosen(settings: dict[str, Any], label: str) -> None:
    assert Compression(**settings).label == label


def test_presets_differ_in_every_switch() -> None:
    paper, upstream = Fidelity.preset("paper"), Fidelity.preset("UPSTREAM")
    assert paper == Fidelity()
    for switch in fields(Fidelity):
        assert getattr(paper, switch.name) != getattr(upstream, switch.name)
        single = Fidelity.preset("paper", **{switch.name: getattr(upstream, switch.name)})
        assert single != paper
        as_text = {switch.name: str(getattr(upstream, switch.name)).lower()}
        assert Fidelity.preset("paper", **as_text) == single


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("published", {}, ["published", "paper", "upstream"]),
        ("paper", {"causal": True}, ["causal", "causal_prefill_scores"]),
        ("paper", {"causal_prefill_scores": "maybe"}, ["maybe", "True", "False"]),
        ("paper", {"streamingllm_sinks": "5"}, ["streamingllm_sinks", "5", "half"]),
        ("paper", {"cached_heads": True}, ["cached_heads", "query"]),
    ],
)
def test_bad_switches_are_refused(preset: str, overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScopeError) as refused:
        Fidelity.preset(preset, **overrides)
    assert all(word in str(refused.value) for word in words)
