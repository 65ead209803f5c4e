"""Every switch of `Fidelity`: flipped alone, it changes the decision that it names and no other."""

from dataclasses import dataclass, fields

import pytest
import torch
from transformers import PreTrainedModel

from scope import Compression, Fidelity, ScopeError, patch
from scope.cache.schedule import Schedule
from scope.generation.session import Session
from scope.methods.prompt import Prompt
from tests.core.tiny import compression_of, random_tokens, tiny_model

C, T = 12, 30


@dataclass(frozen=True)
class Flip:
    """One switch goes from the paper's side to the published code's.

    Attributes:
        switch: which.
        pair: compressor and strategy that it matters to.
        changes: what of a run is the first to differ then, a key of `observe`.
        not_for: a pair that it does not matter to.
        beside: a switch that is on the published code's side before and after.
        prompt_length: tokens of the prompt.
        dtype: of the model.
    """

    switch: str
    pair: tuple[str, str]
    changes: str
    not_for: tuple[str, str]
    beside: str | None = None
    prompt_length: int = 17
    dtype: torch.dtype = torch.float32


FLIPS = [
    # `not_for` is tried where there are as many KV heads as query heads.
    Flip("cached_heads", ("SnapKV", "slide"), "heads", not_for=("SnapKV", "slide")),
    Flip("causal_prefill_scores", ("H2O", "slide"), "prompt", not_for=("SnapKV", "slide")),
    Flip("causal_prefill_scores", ("PyramidInfer", "slide"), "prompt", not_for=("ALLKV", "h2o")),
    Flip(
        "score_dtype",
        ("ALLKV", "slide"),
        "generated",
        not_for=("StreamingLLM", "slm"),
        dtype=torch.float16,
    ),
    Flip(
        "pyramid_at_every_length",
        ("PyramidKV", "slide"),
        "prompt count",
        not_for=("SnapKV", "adaptive"),
    ),
    Flip(
        "pyramidinfer_extra_window",
        ("PyramidInfer", "None"),
        "prompt count",
        not_for=("PyramidKV", "slide"),
        beside="pyramid_at_every_length",
    ),
    Flip("streamingllm_sinks", ("StreamingLLM", "None"), "prompt", not_for=("H2O", "slide")),
    Flip("streamingllm_sinks", ("H2O", "slm"), "generated", not_for=("H2O", "h2o")),
    Flip("frozen_prefix", ("SnapKV", "slide"), "count", not_for=("SnapKV", "h2o"), prompt_length=8),
    Flip("adaptive_window", ("SnapKV", "adaptive"), "count", not_for=("SnapKV", "slide")),
    Flip("discontinuous_clock", ("H2O", "discontinuous"), "count", not_for=("H2O", "adaptive")),
    Flip(
        "fixed_plug_in_delta",
        ("SnapKV", "adaptive"),
        "count",
        not_for=("H2O", "adaptive"),
        beside="adaptive_window",
    ),
    Flip("h2o_decoding_score", ("H2O", "h2o"), "generated", not_for=("H2O", "pyramidinfer")),
    Flip("pyramidinfer_decoding", ("H2O", "pyramidinfer"), "count", not_for=("H2O", "h2o")),
]


def test_every_switch_is_flipped() -> None:
    assert {flip.switch for flip in FLIPS} == {switch.name for switch in fields(Fidelity)}


@pytest.mark.parametrize("flip", FLIPS, ids=lambda flip: f"{flip.switch}-{'-'.join(flip.pair)}")
def test_a_switch_changes_its_decision(flip: Flip) -> None:
    before, after = observe(flip, "gqa", flip.pair)
    assert next(what for what in before if before[what] != after[what]) == flip.changes


@pytest.mark.parametrize("flip", FLIPS, ids=lambda flip: f"{flip.switch}-{'-'.join(flip.not_for)}")
def test_a_switch_changes_nothing_else(flip: Flip) -> None:
    before, after = observe(flip, "mha", flip.not_for)
    assert before == after


def observe(flip: Flip, model_name: str, pair: tuple[str, str]) -> list[dict[str, list]]:
    """What a run held with the switch on either side, from what is decided first to last."""
    published = vars(Fidelity.preset("upstream"))
    beside = {flip.beside: published[flip.beside]} if flip.beside else {}
    model = tiny_model(model_name, dtype=flip.dtype)
    runs = []
    for flipped in ({}, {flip.switch: published[flip.switch]}):
        fidelity = Fidelity.preset("paper", **beside, **flipped)
        prompt, *generated = held(model, compression_of(*pair, C, 3, 7, 3, fidelity=fidelity), flip)
        runs.append(
            {
                "heads": [len(heads) for heads in prompt],
                "prompt count": [len(heads[0]) for heads in prompt],
                "prompt": prompt,
                "count": [[len(heads[0]) for heads in layers] for layers in generated],
                "generated": generated,
            }
        )
    return runs


def held(
    model: PreTrainedModel, compression: Compression, flip: Flip
) -> list[list[list[list[int]]]]:
    """Sorted positions ``[t][layer][head]``, t = 0 after the prompt."""
    with patch(model):
        session = Session(model, compression, [random_tokens(flip.prompt_length, seed=1)], T)
        session.prefill()
        steps = [_positions(session)]
        for token in torch.tensor(random_tokens(T, seed=2)):
            session.step(token[None])
            steps.append(_positions(session))
    return steps


def _positions(session: Session) -> list[list[list[int]]]:
    return [
        [sorted(position for position in head if position >= 0) for head in heads[0].tolist()]
        for heads in (layer.positions for layer in session.cache.layers)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scores_of_a_prompt_are_rounded_to_their_dtype(dtype: torch.dtype) -> None:
    queries, keys = torch.randn(2, 4, 20, 8, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(20, 4)
    prompt = Prompt(queries, keys, keys, hidden, 0, scaling=1.0, score_dtype=dtype)
    sums = prompt.received()
    assert torch.equal(sums, sums.half().float()) == (dtype == torch.float16)


def test_pyramidinfer_decodes_with_one_budget_under_its_threshold() -> None:
    fidelity = Fidelity.preset("paper", pyramidinfer_decoding="threshold")
    compression = compression_of("H2O", "pyramidinfer", C, 3, 7, 3, fidelity=fidelity)
    schedule = Schedule(compression.recipe(T), num_layers=3, batch_size=1)
    schedule.admit(0, prompt_length=17)
    for _ in range(T):
        schedule.advance()
    assert (schedule.now.lengths == C + 7).all()


# --- presets --------------------------------------------------------------------------------------


def test_a_preset_with_an_override_differs_in_it_alone() -> None:
    for name, value in vars(Fidelity.preset("paper")).items():
        mixed = Fidelity.preset("upstream", **{name: value})
        assert vars(mixed) == vars(Fidelity.preset("upstream")) | {name: value}


@pytest.mark.parametrize("value", ["TRUE", "true", True])
def test_a_switch_is_read_from_text(value: str | bool) -> None:
    assert Fidelity.preset("upstream", causal_prefill_scores=value).causal_prefill_scores is True


@pytest.mark.parametrize(
    "override",
    [
        {"causal_prefill_scores": 1},
        {"causal_prefill_scores": "yes"},
        {"streamingllm_sinks": False},
        {"frozen_prefix": "PROMPT"},
        {"frozen_prefix": None},
    ],
)
def test_a_bad_value_is_told_with_the_good_ones(override: dict[str, object]) -> None:
    with pytest.raises(ScopeError) as refused:
        Fidelity.preset("paper", **override)
    (name,) = override
    message = str(refused.value)
    assert f"fidelity.{name} is" in message
    assert ("True, False" in message) or str(getattr(Fidelity(), name)) in message
    assert "\n" not in message
