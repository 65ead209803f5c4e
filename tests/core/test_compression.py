"""Configurations: names in any case, defaults, and one clear line for each bad one."""

from dataclasses import fields
from typing import Any

import pytest

from scope import Compression, Fidelity, ScopeError
from scope.methods.registry import DECODING_STRATEGIES, PREFILL_COMPRESSORS
from tests.core.tiny import PAIRS


def test_methods_and_strategies_are_the_originals() -> None:
    assert set(PREFILL_COMPRESSORS) == {
        "ALLKV", "SnapKV", "PyramidKV", "PyramidInfer", "H2O", "StreamingLLM",
    }  # fmt: skip
    assert set(DECODING_STRATEGIES) == {
        "None", "slide", "adaptive", "discontinuous", "h2o", "slm", "pyramidinfer",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_names_are_found_in_any_case(method: str, strategy: str) -> None:
    compression = Compression(method.upper(), strategy.title())
    assert compression == Compression(method.lower(), strategy)
    assert compression.compressor.name == compression.method == method
    assert compression.strategy(4096).name == compression.decoding_metric == strategy


def test_cumulative_scores_are_h2os_own() -> None:
    def score(strategy: str, **settings: Any) -> str:
        compression = Compression("SnapKV", strategy, **settings)
        return compression.score(compression.strategy(4096))

    assert {s: score(s) for s in DECODING_STRATEGIES} == {
        "None": "current",
        "slide": "current",
        "adaptive": "current",
        "discontinuous": "current",
        "h2o": "cumulative",
        "slm": "recent",
        "pyramidinfer": "current",
    }
    assert score("h2o", fidelity=Fidelity.preset("upstream")) == "current"
    assert score("slide", decoding_score="cumulative") == "cumulative"
    assert score("h2o", decoding_score="current") == "current"
    assert score("slm", decoding_score="cumulative") == "recent"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "SnapKW"}, ["SnapKW", "SnapKV", "StreamingLLM"]),
        ({"decoding_metric": "glide"}, ["glide", "slide", "discontinuous"]),
        ({"decoding_window_size": 256, "decoding_recent_size": 256}, ["256", "smaller"]),
        ({"decoding_recent_size": 0}, ["decoding_recent_size", ">= 1"]),
        ({"method": "H2O", "window_size": 8, "max_capacity_prompt": 8}, ["window_size 8"]),
        ({"window_size": 0}, ["window_size"]),
        ({"kernel_size": 4}, ["kernel_size", "odd"]),
        ({"kernel_size": -1}, ["kernel_size", "odd"]),
        ({"pooling": "meanpool"}, ["meanpool", "maxpool", "avgpool"]),
        ({"group_reduction": "sum"}, ["sum", "mean", "max"]),
        ({"decoding_score": "age"}, ["age", "current", "cumulative"]),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ScopeError) as refused:
        Compression(**settings)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words)


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
