"""A prompt pool in few bits: exact counts and bytes, one result from kernels and plain torch."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression, ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.kernels.rounding import (
    PARTS,
    restore_keys,
    restore_values,
    round_keys,
    round_values,
    stored_as,
)
from scope.kernels.tensors import KeyScale
from tests.core.test_open_house import check_kernels
from tests.core.tiny import random_tokens, tiny_model
from tests.examples.merged import Merged

BITS = (8, 4, 3, 2)
PROMPTS = [random_tokens(length, seed=length) for length in (70, 41, 60)]
STEPS = 12
POOL = {"decoding_window_size": 6, "decoding_recent_size": 2}
ROUNDED = {"prompt_bits": 4, "rounding_group": 16, "whole_sinks": 2, "whole_recent": 5}


def rounded(method: str = "ALLKV", strategy: str = "slide", **options: object) -> Compression:
    pool = {} if strategy == "None" else POOL
    return Compression(method, strategy, **{**pool, **ROUNDED, **options})


def logits_of(
    compression: Compression, prompts: list[list[int]], model: str | PreTrainedModel = "gqa"
) -> Tensor:
    """``[steps, B, vocabulary]``."""
    with patch(tiny_model(model) if isinstance(model, str) else model) as patched:
        session = Session(patched, compression, prompts, STEPS)
        session.prefill()
        steps = range(STEPS)
        return torch.stack([session.step(torch.full((len(prompts),), s)).clone() for s in steps])


def slow_round(numbers: list[float], bits: int) -> list[float]:
    """What one group of numbers comes back as."""
    low, high = min(numbers), max(numbers)
    scale = float(torch.tensor(max((high - low) / (2**bits - 1), 2**-14)).half())
    zero = float(torch.tensor(low).half())
    codes = [min(max(round((x - zero) / scale), 0), 2**bits - 1) for x in numbers]
    return [zero + scale * code for code in codes]


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_that_of_plain_loops(bits: int) -> None:
    numbers = 3 * torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(bits)) + 5
    keys = restore_keys(round_keys(numbers, bits, 16), bits, torch.float32)
    values = restore_values(round_values(numbers, bits, 8), bits, 16, torch.float32)
    for head in range(2):
        for channel in range(16):
            for start in (0, 16):
                group = numbers[head, start : start + 16, channel].tolist()
                got = keys[head, start : start + 16, channel].tolist()
                assert got == pytest.approx(slow_round(group, bits), abs=1e-5)
        for token in range(32):
            for start in (0, 8):
                group = numbers[head, token, start : start + 8].tolist()
                got = values[head, token, start : start + 8].tolist()
                assert got == pytest.approx(slow_round(group, bits), abs=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_the_bits(bits: int) -> None:
    keys = torch.zeros(3, 64, 32)
    codes = round_keys(keys, bits, 32)
    assert codes.packed.numel() == 3 * 64 * 32 * bits // 8
    assert codes.nbytes == codes.packed.numel() + 2 * 2 * 3 * 2 * 32


@pytest.mark.parametrize("bits", BITS)
def test_words_hold_every_so_manieth_channel(bits: int) -> None:
    """Numbers that are their own codes, so that a kernel may count on where they are."""
    numbers = 5 * torch.arange(32) % 2**bits
    numbers[-1] = 2**bits - 1
    words = round_values(numbers[None].float(), bits, 32).packed.view(torch.int16)[0].tolist()
    found, done = [0] * 32, 0
    for part in PARTS[bits]:
        width = 32 * part // 16
        for channel in range(32):
            code = words[channel % width] >> channel // width * part & (1 << part) - 1
            found[channel] += code << done
        words, done = words[width:], done + part
    assert found == numbers.tolist()


def test_more_bits_come_closer() -> None:
    exact = logits_of(Compression("ALLKV", "slide", **POOL), PROMPTS)
    errors = [
        float((logits_of(rounded(prompt_bits=bits), PROMPTS) - exact).abs().mean()) for bits in BITS
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 20


@pytest.mark.parametrize("method", ["ALLKV", "SnapKV", "PyramidKV"])
@pytest.mark.parametrize("strategy", ["None", "slide", "discontinuous"])
def test_the_rest_is_as_without(method: str, strategy: str) -> None:
    """Nothing is long enough to be rounded: the same logits; something is: the same kept sets."""
    options = {} if method == "ALLKV" else {"max_capacity_prompt": 40, "window_size": 4}
    pool = {} if strategy == "None" else POOL
    plain = Compression(method, strategy, **pool, **options)
    expected = logits_of(plain, PROMPTS)
    idle = rounded(method, strategy, whole_recent=200, **options)
    torch.testing.assert_close(logits_of(idle, PROMPTS), expected)
    with patch(tiny_model("gqa")) as model:
        sessions = [
            Session(model, one, PROMPTS, STEPS)
            for one in (plain, rounded(method, strategy, **options))
        ]
        for session in sessions:
            session.prefill()
    for whole, split in zip(*(session.cache.layers for session in sessions), strict=True):
        assert split.compact is not None
        together = torch.cat([split.positions, split.compact.positions], dim=-1)
        for row in range(len(PROMPTS)):
            for theirs, ours in zip(whole.positions[row], together[row], strict=True):
                assert sorted(ours[ours >= 0].tolist()) == sorted(theirs[theirs >= 0].tolist())


@pytest.mark.parametrize("model", ["gqa", "mistral"])
@pytest.mark.parametrize("method", ["ALLKV", "PyramidKV"])
def test_batch_equals_single(model: str, method: str) -> None:
    options = {} if method == "ALLKV" else {"max_capacity_prompt": 40, "window_size": 4}
    compression = rounded(method, **options)
    together = logits_of(compression, PROMPTS, model)
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(compression, [prompt], model)
        torch.testing.assert_close(together[:, row], alone[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_kernels_give_the_same(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(rounded(prompt_bits=bits, prompt_value_bits=2), monkeypatch)


def test_a_refilled_row_forgets() -> None:
    """A short prompt, of which nothing is rounded, after a long one in the same row."""
    prompts = [PROMPTS[0], random_tokens(20, seed=9)]
    with patch(tiny_model("gqa")) as model:
        session = Session(model, rounded(), prompts, STEPS, batch_size=1)
        session.admit(0, 0)
        session.step(torch.tensor([1]))
        session.release(0)
        session.admit(0, 1)
        after = session.step(torch.tensor([1]))
    with patch(tiny_model("gqa")) as model:
        fresh = Session(model, rounded(), prompts[1:], STEPS)
        fresh.prefill()
        torch.testing.assert_close(after, fresh.step(torch.tensor([1])))


def test_slots_and_bytes_are_planned_exactly() -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    compression = rounded()
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        plan = CachePlan.make(model.config, compression.recipe(STEPS), STEPS, lengths)
    assert session.cache.kv_bytes == len(PROMPTS) * plan.kv_bytes(torch.float32)
    # 70 tokens: 63 between the whole ends, three groups of 16; 48 in few bits, 22 whole.
    assert set(plan.compact) == {48}
    assert set(plan.slots) == {max(70 - 48, 41 - 32, 60 - 48) + 6 + 1}


def test_kept_tokens_divide_into_rounded_and_whole() -> None:
    storage = rounded().recipe(1).storage
    kept = np.arange(200)
    beside = storage.compact(kept)
    assert (beside % 16 == 0).all()
    assert (beside <= np.maximum(kept - 7, 0)).all()
    whole = kept - beside
    assert (np.maximum.accumulate(whole) <= storage.most_whole(kept)).all()


@pytest.mark.parametrize(
    ("strategy", "options", "told"),
    [
        ("h2o", ROUNDED, "which h2o does not leave"),
        ("slide", {**ROUNDED, "fidelity": "upstream"}, "frozen_prefix capacity does not leave"),
        ("slide", {"whole_sinks": 3}, "whole_sinks says nothing without prompt_bits"),
        ("slide", {"prompt_bits": 5}, "expected one of 8, 4, 3, 2"),
        ("slide", {**ROUNDED, "whole_recent": -1}, "it must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(strategy: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ScopeError, match=told):
        Compression("ALLKV", strategy, **POOL, **options)


def test_refuses_a_longer_prompt_than_planned() -> None:
    with patch(tiny_model("gqa")) as model:
        session = Session(model, rounded(), PROMPTS, STEPS)
        session.prompts = [random_tokens(90, seed=1)]
        with pytest.raises(ScopeError, match="does not fit into slots"):
            session.admit(0, 0)


EIGHT = {"decode_bits": 8}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter rounds otherwise")
@pytest.mark.parametrize("score", ["current", "cumulative", "recent", "random"])
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_kernels_give_the_same_in_slots_of_8_bits(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernels(Compression("ALLKV", "slide", decoding_score=score, **POOL, **EIGHT), monkeypatch)
    check_kernels(rounded(decoding_score=score, **EIGHT), monkeypatch)


def test_slots_of_8_bits_take_a_byte_a_number_and_stay_close() -> None:
    plain, eight = (Compression("ALLKV", "slide", **POOL, **extra) for extra in ({}, EIGHT))
    lengths = [len(prompt) for prompt in PROMPTS]
    config = tiny_model("gqa").config
    whole, small = (
        CachePlan.make(config, one.recipe(STEPS), STEPS, lengths) for one in (plain, eight)
    )
    beside = 3 * 2 * 16 * 8  # layers, heads, channels: a scale and a shift in float32
    assert 2 * (small.kv_bytes(torch.bfloat16) - beside) == whole.kv_bytes(torch.bfloat16)
    exact, close = (logits_of(one, PROMPTS) for one in (plain, eight))
    assert 0 < float((close - exact).abs().mean()) < 0.2 * float(exact.abs().mean())


def far_apart(tokens: int) -> Tensor:
    """Keys ``[2, tokens, 16]`` of which one channel is far from 0, and another hardly moves."""
    keys = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(tokens))
    keys[..., 3] += 300.0
    keys[..., 5] *= 0.01
    return keys


@pytest.mark.parametrize("known", [1, 8, 400])
def test_keys_in_8_bits_keep_what_tells_them_apart(known: int) -> None:
    """However little of a sequence the scale was chosen for, and whatever lies beside it."""
    keys = far_apart(400)
    key_scale = KeyScale(torch.ones(2, 16), torch.zeros(2, 16))
    beside = torch.full((2, 5, 16), 1e4)
    there = torch.arange(known + 5).expand(2, -1) < known
    key_scale.fit(torch.cat([keys[:, :known], beside], dim=1), there)
    codes = stored_as(torch.float8_e4m3fn, key_scale.codes(keys))
    error = (key_scale.restored(codes) - keys).abs()
    # Three bits after the first, of the distance from the mean; below 2^-6 there are fewer.
    apart, least = (keys - key_scale.shift[:, None]).abs(), key_scale.scale[:, None] * 2**-10
    assert (error <= apart / 16 + least + 1e-4).all()


@pytest.mark.parametrize(
    ("budget", "fidelity"), [("uniform", "paper"), ("zigzag", "paper"), ("uniform", "upstream")]
)
def test_slots_of_8_bits_are_close_where_keys_are_far_from_0(budget: str, fidelity: str) -> None:
    """In channels that RoPE hardly turns, as Qwen2's keys are. As codes of their own they fail."""
    model = tiny_model("qwen2", seed=1)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.data.view(2, 16)[:, [7, 15]] += 100.0
    sizes = {"max_capacity_prompt": 30, "window_size": 4}
    sizes |= {"budget": budget, "fidelity": fidelity}
    exact, close = (
        logits_of(Compression("SnapKV", "slide", **POOL, **sizes, **extra), PROMPTS, model)
        for extra in ({}, EIGHT)
    )
    assert float((close - exact).abs().mean()) < 0.2 * float(exact.abs().mean())


def test_what_slots_of_8_bits_cannot_hold_becomes_the_largest() -> None:
    numbers = torch.tensor([1.0, 1000.0, -torch.inf, 448.0])
    assert stored_as(torch.float8_e4m3fn, numbers).float().tolist() == [1.0, 448.0, -448.0, 448.0]


def test_slots_of_8_bits_are_refused_where_a_method_works_on_them() -> None:
    with pytest.raises(ScopeError, match="leave decode_bits out"):
        Compression("ALLKV", Merged, **POOL, **EIGHT)
