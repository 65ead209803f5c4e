"""What does not go together is said before a model is there, and what is not refused runs."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from scope import Compression, ScopeError, SlotCache, patch
from scope.generation.session import Session
from scope.methods.api import Budget, Compressor
from scope.methods.storage import Storage
from scope.registry import BUDGETS, COMPRESSORS, SCORES, STRATEGIES
from tests.core.tiny import compression_of, random_tokens, tiny_factors, tiny_heads, tiny_model

ENDS = {"whole_sinks": 1, "whole_recent": 2}
STORED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "shared heads": {"share_heads": True},
    "budgets of heads": {"per_head": True},
    "budgets of shared heads": {"per_head": True, "share_heads": True},
    "merged layers": {"merged_layers": 1.0, **ENDS},
    "latents": {"low_rank": tiny_factors(), **ENDS},
    "latents, shared heads": {"low_rank": tiny_factors(), "share_heads": True, **ENDS},
    "few bits": {"prompt_bits": 4, "rounding_group": 16, **ENDS},
    "few channels": {"pruned_channels": 0.5, **ENDS},
    "8 bits": {"decode_bits": 8},
    "shared layers": {"share_layers": "1=0"},
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("gqa", num_layers=2)


def refusal(
    model: PreTrainedModel,
    method: Any,
    strategy: str,
    budget: Any = None,
    steps: int = 1,
    **options: Any,
) -> tuple[str, str] | None:
    """When a configuration is refused, and how: as it is made, or at the first prompt."""
    choices = {} if budget is None else {"budget": budget}
    when = "made"
    try:
        compression = compression_of(method, strategy, 20, **choices, **options)
        when = "prompt"
        with patch(model):
            session = Session(model, compression, [random_tokens(40, seed=3)], steps)
            session.prefill()
            for step in range(steps):
                session.step(torch.tensor([step]))
    except ScopeError as error:
        return when, str(error)
    return None


def silent(method: type[Compressor], budget: type[Budget]) -> type[Compressor]:
    """The same methods, as if their authors had not said whose choice it is."""
    own = type(budget.__name__, (budget,), {"own_share": None})
    return type(method.__name__, (method,), {"own_choice": None, "budget": own})


def budgets_of(method: type[Compressor]) -> list[type[Budget]]:
    own = [method.budget]
    others = [one for one in BUDGETS.values() if one.name != method.budget.name]
    return own + others if method.takes_budget else own


@pytest.mark.parametrize("fidelity", ["paper", "upstream"])
@pytest.mark.parametrize("method", COMPRESSORS.values(), ids=COMPRESSORS)
@pytest.mark.parametrize("stored", STORED)
def test_nothing_is_refused_at_the_first_prompt_nor_without_need(
    model: PreTrainedModel, stored: str, method: type[Compressor], fidelity: str
) -> None:
    options = STORED[stored]
    for budget in budgets_of(method):
        chosen = budget if method.takes_budget else None
        told = refusal(model, method, "slide", chosen, fidelity=fidelity, **options)
        assert told is None or told[0] == "made", (budget.name, told)
        if told and fidelity == "paper":
            assert refusal(model, silent(method, budget), "slide", **options), (budget.name, told)


@pytest.mark.parametrize("fidelity", ["paper", "upstream"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_is_refused_at_the_first_prompt(
    model: PreTrainedModel, strategy: str, fidelity: str
) -> None:
    for method in COMPRESSORS:
        told = refusal(model, method, strategy, steps=8, fidelity=fidelity)
        assert told is None or told[0] == "made", (method, told)


@pytest.mark.parametrize("score", SCORES)
def test_no_score_is_refused_at_the_first_prompt(model: PreTrainedModel, score: str) -> None:
    for stored, options in STORED.items():
        told = refusal(model, "H2O", "slide", steps=8, decoding_score=score, **options)
        assert told is None or told[0] == "made", (stored, told)


def test_one_ranking_of_all_heads_is_refused_where_they_hold_other_tokens_of_a_prompt(
    model: PreTrainedModel,
) -> None:
    ranked = {"decoding_score": "rpc"}
    when, words = refusal(model, "SnapKV", "h2o", **ranked) or ("never", "")
    assert when == "made"
    for part in ("rpc ranks", "SnapKV keeps other ones in each", "give share_heads true"):
        assert part in words
    for method, strategy in (("SnapKV", "slide"), ("ALLKV", "h2o"), ("StreamingLLM", "h2o")):
        assert refusal(model, method, strategy, **ranked) is None
    assert refusal(model, "SnapKV", "h2o", share_heads=True, **ranked) is None


@pytest.mark.parametrize("num_layers", range(1, 130))
def test_the_smallest_share_that_merges_is_told(num_layers: int) -> None:
    with pytest.raises(ScopeError) as refused:
        Storage(merged_layers=0.9 * min(2 / num_layers, 1)).check_layers(num_layers)
    if num_layers == 1:
        assert "the model has one" in str(refused.value)
        return
    least = float(str(refused.value).split()[-3])
    Storage(merged_layers=least).check_layers(num_layers)
    assert 2 / num_layers <= least < 2 / num_layers + 0.001


@pytest.mark.parametrize("bits", [{}, {"prompt_bits": 4}, {"prompt_bits": 3}], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 100, 128, 192, 256])
def test_the_smallest_share_that_prunes_is_told(head_dim: int, bits: dict[str, Any]) -> None:
    filling = {None: 1, 4: 8, 3: 16}[bits.get("prompt_bits")]
    least_gone = head_dim - (head_dim - 1) // filling * filling
    with pytest.raises(ScopeError) as refused:
        Storage(pruned_channels=0.9 * least_gone / head_dim, **bits).check_head(head_dim)
    if least_gone == head_dim:
        assert str(refused.value).endswith("leave it out")
        return
    least = float(str(refused.value).split()[-3])
    Storage(pruned_channels=least, **bits).check_head(head_dim)
    assert least_gone / head_dim <= least < least_gone / head_dim + 0.0011
    with pytest.raises(ScopeError):
        Storage(pruned_channels=0.0, **bits).check_head(head_dim)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("ALLKV", {"merged_layers": 0.5}, "merged_layers 0.5 is less than two of the model's 3"),
        ("ALLKV", {"pruned_channels": 0.05}, "pruned_channels 0.05 leaves all 16 channels of a"),
        ("LoCoCo", {"heads": tiny_heads(), "max_capacity_prompt": 20}, "heads of 16, and this"),
    ],
)
def test_a_model_that_does_not_go_with_it_is_refused_before_a_prompt(
    method: str, options: dict[str, Any], words: str
) -> None:
    config = tiny_model("gqa").config
    config.head_dim = 16 if method == "ALLKV" else 32
    with pytest.raises(ScopeError, match=words):
        SlotCache(config, Compression(method, **options), 4)
