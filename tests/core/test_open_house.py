"""Methods that the project does not have: each one file beside it, and all promises hold."""

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, SlotCache, patch
from scope.cache import writing
from scope.decoding.slide import Slide
from scope.generation.session import Session
from scope.kernels.tensors import NewTokens
from scope.methods.api import AttentionScore, Entries, Prompt, Score, Slots
from scope.scores.cumulative import Cumulative
from tests.core.tiny import backend, random_tokens, tiny_factors, tiny_heads, tiny_model
from tests.examples.counted import Counted
from tests.examples.merged import Merged
from tests.examples.redundancy import Redundancy
from tests.examples.uneven import Uneven
from tests.examples.value_norm import ValueNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = [random_tokens(length, seed=length) for length in (40, 25, 33)]
STEPS = 14
PROMPT = {"max_capacity_prompt": 20, "window_size": 4}
POOL = {"decoding_window_size": 6, "decoding_recent_size": 2}
ENDS = {"whole_sinks": 1, "whole_recent": 2}
PRUNED = {"pruned_channels": 0.5, **ENDS}


class SeldomCounted(Counted):
    """Has a state per slot that no kernel knows; what leaves has counted most."""

    name: ClassVar[str] = "counted now and then"
    seldom: ClassVar[bool] = True

    def worth(self, slots: Slots) -> Tensor:
        return -super().worth(slots)


COMPRESSIONS = {
    "value norm": Compression(ValueNorm, "slide", norm=2, **PROMPT, **POOL),
    "counted": Compression("H2O", "slide", decoding_score=Counted, **PROMPT, **POOL),
    "counted, seldom": Compression(
        "ALLKV",
        "periodic",
        decoding_score=SeldomCounted,
        period=2,
        decoding_window_size=3,
        decoding_recent_size=1,
    ),
    "counted, unified": Compression("H2O", "h2o", decoding_score=Counted, **PROMPT, **POOL),
    "snapkv, seldom": Compression(
        "H2O",
        "periodic",
        decoding_score="snapkv_decode",
        last_queries=2,
        period=3,
        **PROMPT,
        **POOL,
    ),
    "R-KV": Compression("ALLKV", "periodic", decoding_score="rkv", period=3, **POOL),
    "R-KV, unified": Compression("SnapKV", "h2o", decoding_score="rkv", **PROMPT, **POOL),
    "expected": Compression(
        "SnapKV", "periodic", decoding_score="expected", last_queries=4, period=3, **PROMPT, **POOL
    ),
    "RPC": Compression("ALLKV", "rpc", period=5, keep_one_in=3, decoding_recent_size=2),
    "redundancy": Compression("ALLKV", "adaptive", decoding_score=Redundancy, **POOL),
    "refreshed": Compression("ALLKV", "refreshkv", working_set=8, stride=4),
    "refreshed by drift": Compression(
        "SnapKV", "refreshkv", working_set=8, stride=2, threshold=0.5, **PROMPT
    ),
    "refreshed of uneven": Compression(
        "SnapKV", "refreshkv", budget=Uneven, working_set=8, stride=3, **PROMPT
    ),
    "uneven": Compression("SnapKV", "slide", budget=Uneven, **PROMPT, **POOL),
    "uneven layers": Compression("SnapKV", budget=Uneven, per_head=False, **PROMPT),
    "zigzag": Compression("ZigZagKV", "slide", **PROMPT, **POOL),
    "zigzag, whole generation": Compression("ZigZagKV", **PROMPT),
    "zigzag heads": Compression("H2O", "slide", budget="zigzag", per_head=True, **PROMPT, **POOL),
    "zigzag heads, unified": Compression(
        "SnapKV", "h2o", budget="zigzag", per_head=True, **PROMPT, **POOL
    ),
    "zigzag heads, whole generation": Compression("ZigZagKV", per_head=True, **PROMPT),
    "zigzag heads, by a score in torch": Compression(
        "H2O", "adaptive", budget="zigzag", per_head=True, decoding_score=Counted, **PROMPT, **POOL
    ),
    "zigzag heads, seldom": Compression(
        "H2O",
        "periodic",
        budget="zigzag",
        per_head=True,
        last_queries=3,
        period=2,
        decoding_window_size=3,
        decoding_recent_size=1,
        **PROMPT,
    ),
    "zigzag heads, merged": Compression(
        "H2O", Merged, budget="zigzag", per_head=True, **PROMPT, **POOL
    ),
    "kvcompress": Compression(
        "KVCompress", "slide", protected_window=5, block_size=4, **PROMPT, **POOL
    ),
    "shared layers, zigzag heads": Compression(
        "H2O",
        "adaptive",
        budget="zigzag",
        per_head=True,
        decoding_score=Counted,
        share_layers="1=0",
        **PROMPT,
        **POOL,
    ),
    "shared layers, rounded": Compression(
        "SnapKV",
        "slide",
        share_layers="1=0",
        prompt_bits=8,
        rounding_group=16,
        whole_sinks=0,
        whole_recent=2,
        **PROMPT,
        **POOL,
    ),
    "merged layers": Compression(
        "ALLKV",
        "slide",
        merged_layers=1.0,
        unmerged_share=0.2,
        whole_sinks=1,
        whole_recent=2,
        **POOL,
    ),
    "merged": Compression("SnapKV", Merged, **PROMPT, **POOL),
    "lococo": Compression("LoCoCo", "slide", heads=tiny_heads(), **PROMPT, **POOL),
    "lococo, folding": Compression("ALLKV", "lococo", period=4, heads=tiny_heads(), **POOL),
    "kvmerger": Compression("KVMerger", "slide", least_similarity=0.0, **PROMPT, **POOL),
    "kvmerger, uneven": Compression("KVMerger", budget=Uneven, least_similarity=0.0, **PROMPT),
    "lococo, uneven": Compression("LoCoCo", budget=Uneven, heads=tiny_heads(), **PROMPT),
    "pruned channels": Compression("SnapKV", "slide", **PRUNED, **PROMPT, **POOL),
    "pruned channels in few bits": Compression(
        "ALLKV", "adaptive", prompt_bits=4, rounding_group=16, **PRUNED, **POOL
    ),
    "latents": Compression("ALLKV", "slide", low_rank=tiny_factors(), **ENDS, **POOL),
    "latents, shared heads": Compression(
        "SnapKV", low_rank=tiny_factors(), share_heads=True, **ENDS, **PROMPT
    ),
    "pruned channels, uneven": Compression("H2O", budget=Uneven, **PRUNED, **PROMPT),
}
# What a layer does here depends on another.
ACROSS_LAYERS = ("uneven", "zigzag", "layers")
every = pytest.mark.parametrize("name", COMPRESSIONS)


def run(
    compression: Compression, prompts: list[list[int]], layers: int = 3, steps: int = STEPS
) -> tuple[Tensor, list[list[Tensor]]]:
    """Logits ``[steps + 1, B, vocabulary]``, and sorted positions held after each, by layer."""
    logits, held = [], []
    with patch(tiny_model("gqa", num_layers=layers).to(DEVICE)) as model:
        session = Session(model, compression, prompts, steps)
        for step in range(steps + 1):
            tokens = torch.full((len(prompts),), step)
            logits.append(session.prefill() if step == 0 else session.step(tokens).clone())
            held.append(
                [layer.opened().positions.sort().values.cpu() for layer in session.cache.layers]
            )
    return torch.stack(logits).cpu(), held


@every
def test_batch_equals_single(name: str) -> None:
    together, _ = run(COMPRESSIONS[name], PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = run(COMPRESSIONS[name], [prompt])
        torch.testing.assert_close(together[:, row], alone[:, 0], rtol=1e-4, atol=1e-4)


@every
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_kernels_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = 2 if any(word in name for word in ACROSS_LAYERS) else 1
    check_kernels(COMPRESSIONS[name], monkeypatch, layers)


def check_kernels(
    compression: Compression, monkeypatch: pytest.MonkeyPatch, layers: int = 1
) -> None:
    """In few steps and layers, for Triton's interpreter takes milliseconds for every program."""
    runs = []
    for kernels in (False, True):
        chosen = backend(kernels)
        monkeypatch.setattr(writing, "backend_for", lambda keys, chosen=chosen: chosen)
        runs.append(run(compression, PROMPTS[:2], layers, steps=10))
    (plain, plainly_held), (fused, held) = runs
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(held[-1], plainly_held[-1], strict=True):
        assert torch.equal(ours, theirs)


def test_files_are_short() -> None:
    limits = {"value_norm": 40, "redundancy": 50, "counted": 40}
    for path in (Path(__file__).parents[1] / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= limits.get(path.stem, 50)


# --- each against what it is in the extreme, or against plain loops -------------------------------


def test_redundancy_is_the_mean_cosine() -> None:
    random = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 1, 6, 4, generator=random)
    positions = torch.tensor([[[3, -1, 5, 6, 7, -1]]], dtype=torch.int32)
    current = torch.rand(1, 1, 6, generator=random)
    nothing = torch.zeros(1)
    slots = Slots(
        keys=keys,
        values=keys,
        positions=positions,
        ranks=positions,
        newest=nothing,
        position=nothing,
        protected=nothing,
        recent=1,
        new=NewTokens(nothing, nothing, nothing),
        current=current,
        draw=nothing,
        layer=0,
        backend=backend(False),
        state={},
        scaling=1.0,
        sliding_window=None,
    )
    worth = Redundancy(balance=0.25).worth(slots)[0, 0].tolist()
    held = [i for i in range(6) if positions[0, 0, i] >= 0]
    vectors = keys[0, 0].tolist()

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    for i in held:
        redundancy = sum(cosine(vectors[i], vectors[j]) for j in held) / len(held)
        expected = 0.25 * float(current[0, 0, i]) - 0.75 * redundancy
        assert worth[i] == pytest.approx(expected, abs=1e-5)


def test_uneven_budgets_sum_to_the_even_ones_and_differ() -> None:
    with patch(tiny_model("gqa").to(DEVICE)) as model:
        session = Session(model, COMPRESSIONS["uneven"], PROMPTS, STEPS)
        session.prefill()
        held = torch.stack(
            [(layer.opened().positions >= 0).sum(-1) for layer in session.cache.layers]
        )
        kept = session.cache.schedule.kept
    for row in range(len(PROMPTS)):
        total, heads = int(held[:, row].sum()), held[:, row].numel()
        assert heads * (20 - 1) <= total <= heads * 20, "but for rounding down"
        assert len(held[:, row].unique()) > 1
    assert np.array_equal(kept, held.amax(dim=-1).cpu().numpy())


def test_heads_of_uneven_shares_hold_the_whole_generation() -> None:
    _, held = run(Compression("SnapKV", budget=Uneven, **PROMPT), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        generated = list(range(len(prompt), len(prompt) + STEPS))
        for layer in held[-1]:
            assert layer[row, :, -STEPS:].tolist() == [generated] * layer.shape[1]


def test_a_budget_above_its_ceiling_is_refused() -> None:
    class TooMuch(Uneven):
        def ceiling(self, length: int, num_layers: int) -> list[int]:
            return [self.max_capacity_prompt // 2] * num_layers

    compression = Compression("SnapKV", budget=TooMuch, **PROMPT)
    with patch(tiny_model("gqa")) as model, pytest.raises(ScopeError, match="ceiling"):
        Session(model, compression, PROMPTS, STEPS).prefill()


def test_merging_changes_values_and_nothing_else() -> None:
    merged, _ = run(COMPRESSIONS["merged"], PROMPTS)
    plain, _ = run(Compression("SnapKV", Merged, weight=0.0, **PROMPT, **POOL), PROMPTS)
    slide, _ = run(Compression("SnapKV", "slide", **PROMPT, **POOL), PROMPTS)
    torch.testing.assert_close(plain, slide)
    assert not torch.allclose(merged, plain, atol=1e-3)
    first = POOL["decoding_window_size"] + 2  # until the first value has changed
    assert torch.equal(merged[:first], plain[:first])


def test_hidden_states_are_what_the_projections_read() -> None:
    seen = []

    class Watching(ValueNorm):
        def score(self, prompt: object) -> Tensor:
            seen.append(prompt)
            return super().score(prompt)

    with patch(tiny_model("gqa")) as model, torch.inference_mode():
        Session(model, Compression(Watching, **PROMPT), PROMPTS[:1], 2).prefill()
        for layer, prompt in zip(model.model.layers, seen, strict=True):
            values = layer.self_attn.v_proj(prompt.hidden).view(prompt.length, -1, 16)
            torch.testing.assert_close(values.transpose(0, 1), prompt.values)
            assert prompt.layer == layer.self_attn.layer_idx


def test_prompts_wait_in_no_cache_after_they_are_shared_out() -> None:
    with patch(tiny_model("gqa")) as model:
        cache = SlotCache(model.config, COMPRESSIONS["uneven"], STEPS)
        model(input_ids=torch.tensor([PROMPTS[0]]), past_key_values=cache)
    assert not cache.writer._waiting


# --- mistakes that an author may make -------------------------------------------------------------


class NoScore(Slide):
    score = None


class PoolBelowRecent(Slide):
    def pool(self, step: np.ndarray) -> np.ndarray:
        return np.full_like(step, 1)


class Fewer(ValueNorm):
    def compress(self, prompt: Prompt, share: int) -> Entries:
        return prompt.take(self.keep(prompt, share)[:, 1:])


class StateOfQueryHeads(Counted):
    state: ClassVar[dict] = {"count": ("H_q", "S")}


class ReadInPart(Slide):
    working_set = 4


class NotARing(Counted):
    state: ClassVar[dict] = {"queries": ("H", "S")}


class StateOfTwo(Slide):
    state: ClassVar[dict] = {"count": ("H", "S")}


class OwnWorth(Cumulative):
    """Inherits a kernel that ranks otherwise."""

    def worth(self, slots: Slots) -> Tensor:
        return slots.state["total"].mul_(0.1).add_(slots.current)


class OneWorthForAllHeads(AttentionScore):
    name = "shared"

    def worth(self, slots: Slots) -> Tensor:
        return slots.current.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"decoding_metric": NoScore, **POOL}, "names no score"),
        ({"decoding_metric": PoolBelowRecent, **POOL}, "more tokens gone than may go"),
        ({"decoding_metric": ReadInPart, **POOL}, "read in part only where all stay"),
        ({"method": Fewer, **PROMPT}, "fill what is missing with FREE"),
        (
            {"decoding_metric": "slide", "decoding_score": StateOfQueryHeads, **POOL},
            "begins with H, S",
        ),
        ({"decoding_metric": "slide", "decoding_score": NotARing, **POOL}, "it is a ring"),
        (
            {"decoding_metric": StateOfTwo, "decoding_score": Counted, **POOL},
            "both have a state named count",
        ),
    ],
    ids=[
        "no score",
        "pool below R",
        "read in part",
        "fewer entries",
        "state of query heads",
        "not a ring",
        "one name",
    ],
)
def test_a_mistake_is_told(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        run(Compression(**choices), PROMPTS[:1])


@pytest.mark.parametrize("score", [OwnWorth, OneWorthForAllHeads])
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_kernels_rank_by_what_a_score_says(
    score: type[Score], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernels(Compression("ALLKV", "slide", decoding_score=score, **POOL), monkeypatch)


@pytest.mark.parametrize(
    "choices",
    [
        {"method": "SnapKV", "max_capacity_prompt": 20, "window_size": 18},
        {"method": "StreamingLLM", "max_capacity_prompt": 20},
    ],
    ids=lambda choices: choices["method"],
)
def test_heads_of_few_tokens_keep_their_last_and_first(choices: dict[str, Any]) -> None:
    compression = Compression(**choices, budget=Uneven)
    with patch(tiny_model("gqa").to(DEVICE)) as model:
        session = Session(model, compression, PROMPTS[:1], STEPS)
        session.prefill()
        for layer in session.cache.layers:
            for head in layer.opened().positions[0].tolist():
                held = {position for position in head if position >= 0}
                assert set(range(len(PROMPTS[0]) - 6, len(PROMPTS[0]))) <= held
                if choices["method"] == "StreamingLLM":
                    assert head[:4] == [0, 1, 2, 3]


def test_one_name_is_one_configuration() -> None:
    options = {"fidelity": "upstream", "max_capacity_prompt": 100}
    named = Compression("PyramidInfer", budget="pyramid", **options)
    assert named == Compression("PyramidInfer", **options)
    assert named.recipe(9).budget.ceiling(150, 2) == [108, 108]


def test_shared_settings_may_be_a_class_and_no_typing_error() -> None:
    assert Compression.from_shared("H2O", Merged, weight=0.1, delta=3).options["weight"] == 0.1
    with pytest.raises(ScopeError, match="max_capcity_prompt is not an option"):
        Compression.from_shared("H2O", "slide", max_capcity_prompt=9)
