"""RefreshKV: the same working sets and logits as the paper's algorithm in plain loops."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, patch
from scope.cache import writing
from scope.cache.layer import SlotLayer
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from tests.core.slow_reference import SlowReference
from tests.core.test_open_house import PROMPTS, STEPS, run
from tests.core.tiny import backend, random_tokens, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Without kernels a GPU cannot read host memory.
PLAIN_OFFLOAD = pytest.param(
    False, True, marks=pytest.mark.skipif(DEVICE == "cuda", reason="refused there")
)
PROMPT = {"max_capacity_prompt": 20, "window_size": 4}


def refreshkv(method: str = "ALLKV", **options: Any) -> Compression:
    return Compression.from_shared(method, "refreshkv", **PROMPT, **options)


def working_sets(layer: SlotLayer, row: int) -> list[list[int]]:
    """Positions in the working set of each head, the first to be dropped in front."""
    working = layer.working
    size = working.listed.slots.shape[-1]
    newest = int((layer.positions[row, 0] >= 0).sum()) - 1
    begin = (newest - int(working.listed.since[row])) % size
    names = working.listed.slots[row].roll(-begin, dims=-1).tolist()
    positions = layer.positions[row].tolist()
    return [
        [held[name] for name in head if name >= 0]
        for head, held in zip(names, positions, strict=True)
    ]


METHODS = ["ALLKV", "SnapKV", "StreamingLLM"]
MODELS = ["gqa", "mistral"]
SETS = [
    {"working_set": 8, "stride": 4},
    {"working_set": 3, "stride": 5},
    {"working_set": 44, "stride": 3},
    {"working_set": 8, "stride": 1},
    {"working_set": 8, "stride": 2, "threshold": 0.6},
    {"working_set": 4, "stride": 1, "threshold": 0.3},
    {"working_set": 1, "stride": 2},
]


@pytest.mark.parametrize(
    ("method", "options", "model_name"),
    [  # every two of them meet
        (method, options, MODELS[(i + j) % 2])
        for i, options in enumerate(SETS)
        for j, method in enumerate(METHODS)
    ],
    ids=str,
)
def test_sets_and_logits_are_those_of_plain_loops(
    method: str, options: dict[str, Any], model_name: str
) -> None:
    compression = refreshkv(method, **options)
    model = tiny_model(model_name, seed=3, dtype=torch.float64)
    tokens = random_tokens(STEPS, seed=9)
    with patch(model):
        session = Session(model, compression, PROMPTS, STEPS)
        ours = [session.prefill()]
        sets = [[[working_sets(x, r) for x in session.cache.layers] for r in range(3)]]
        for token in tokens:
            ours.append(session.step(torch.full((3,), token)))
            sets.append([[working_sets(x, r) for x in session.cache.layers] for r in range(3)])
    for row, prompt in enumerate(PROMPTS):
        slow = SlowReference(model, compression, STEPS)
        expected = [slow.read_prompt(prompt), *map(slow.read_token, tokens)]
        for logits, found, step in zip(ours, sets, expected, strict=True):
            torch.testing.assert_close(logits[row], step.logits, rtol=1e-4, atol=1e-4)
            assert found[row] == step.working


def test_layers_and_rows_refresh_each_in_their_own_time() -> None:
    model = tiny_model("gqa", seed=3).to(DEVICE)
    with patch(model):
        session = Session(model, refreshkv(working_set=8, stride=2, threshold=0.5), PROMPTS, STEPS)
        session.prefill()
        for token in random_tokens(STEPS, seed=9):
            session.step(torch.full((3,), token))
        counts = torch.stack([layer.working.refreshes for layer in session.cache.layers])
    assert len(counts.unique()) > 1
    assert counts.max() <= STEPS // 2


def logits(compression: Compression) -> Tensor:
    return run(compression, PROMPTS)[0]


@pytest.mark.parametrize("method", ["ALLKV", "SnapKV"])
def test_reading_everything_is_the_full_cache(method: str) -> None:
    full = logits(Compression.from_shared(method, "None", **PROMPT))
    for reading in ({"stride": 1, "working_set": 8}, {"stride": 4, "working_set": 99}):
        found = logits(refreshkv(method, **reading))
        torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(refreshkv(method, stride=4, working_set=8)), full, atol=1e-2)


def test_slots_of_8_bits_are_read_by_name_too() -> None:
    full = logits(Compression("ALLKV", decode_bits=8))
    found = logits(refreshkv(stride=20, working_set=99, decode_bits=8))
    torch.testing.assert_close(found, full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"working_set": 8, "stride": 3},
        {"working_set": 8, "stride": 2, "threshold": 0.6},
        {"working_set": 99, "stride": 4, "decode_bits": 8},
    ],
    ids=str,
)
def test_where_slots_lie_changes_nothing(options: dict[str, Any]) -> None:
    assert torch.equal(logits(refreshkv(**options, offload=True)), logits(refreshkv(**options)))


def test_thresholds_at_both_ends() -> None:
    fixed = logits(refreshkv(working_set=8, stride=3))
    assert torch.equal(logits(refreshkv(working_set=8, stride=3, threshold=1.0)), fixed)
    never = logits(refreshkv(working_set=8, stride=STEPS + 1))
    assert not torch.allclose(never, fixed, atol=1e-2)
    torch.testing.assert_close(logits(refreshkv(working_set=8, stride=3, threshold=-1)), never)


@pytest.mark.parametrize(("kernels", "offload"), [(False, False), PLAIN_OFFLOAD, (True, True)])
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_rows_at_different_steps(
    kernels: bool, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that starts over beside others, and idles for a while, gives what it gives alone."""
    monkeypatch.setattr(writing, "backend_for", lambda keys: backend(kernels))
    model = tiny_model("gqa", num_layers=1 if kernels else 3).to(DEVICE)
    sizes = {"working_set": 6, "stride": 3}

    def steps(session: Session, row: int, count: int) -> Tensor:
        tokens = random_tokens(count, seed=1)
        return torch.stack([session.step(torch.full((3,), t))[row].clone() for t in tokens])

    with patch(model):
        alone = Session(model, refreshkv(**sizes), PROMPTS, STEPS, batch_size=3)
        alone.admit(1, 1)
        expected = steps(alone, 1, 6)
        beside = Session(model, refreshkv(**sizes, offload=offload), PROMPTS, STEPS)
        beside.prefill()
        steps(beside, 0, 4)
        beside.release(1)
        steps(beside, 0, 1)
        beside.admit(1, 1)
        torch.testing.assert_close(steps(beside, 1, 6), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "offload"), [(False, False), PLAIN_OFFLOAD, (True, False), (True, True)]
)
@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
def test_what_is_not_listed_is_not_read(
    kernels: bool, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots outside the working set may hold anything at all; in host memory, all of them."""
    monkeypatch.setattr(writing, "backend_for", lambda keys: backend(kernels))
    model = tiny_model("gqa", num_layers=2).to(DEVICE)
    compression = refreshkv(working_set=6, stride=9, offload=offload)
    results = []
    for spoilt in (False, True):
        with patch(model), torch.inference_mode():
            session = Session(model, compression, PROMPTS[:2], STEPS)
            session.prefill()
            for layer in session.cache.layers if spoilt else ():
                named = torch.zeros_like(layer.positions, dtype=torch.bool)
                named.scatter_(2, layer.working.listed.slots.long(), not offload)
                named = named.to(layer.keys.device)
                layer.keys[~named] = torch.nan
                layer.values[~named] = torch.nan
            results.append(session.step(torch.tensor([1, 2])).clone())
    assert torch.equal(*results)


def test_a_step_is_recorded_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with patch(tiny_model("gqa").to(DEVICE)) as model:
        session = Session(model, refreshkv(working_set=6, stride=4), PROMPTS, STEPS)
        session.prefill()
        kinds = []
        for token in range(STEPS):
            session.step(torch.full((3,), token))
            kinds.append(session.cache.schedule.may_be_full)
    due = [step for step, kind in enumerate(kinds, start=1) if kind]
    assert due == [4, 8, 12]
    assert all(b - a == 4 for a, b in pairwise(due))


@pytest.mark.parametrize("threshold", [None, -1])
def test_bytes_held_and_bytes_read(threshold: float | None) -> None:
    model = tiny_model("gqa").to(DEVICE)
    compression = refreshkv(working_set=8, stride=3, threshold=threshold)
    token, layers, heads, slots = 2 * 16 * 4, 3, 2, len(PROMPTS[0]) + STEPS
    plan = CachePlan.make(model.config, compression.recipe(STEPS), STEPS, [len(PROMPTS[0])])
    lists = layers * heads * 8 * 4
    held = layers * heads * slots * token + lists
    assert plan.kv_bytes(torch.float32) == held
    on_average = layers * heads * (8 + (slots - 8) / 3) * token + lists
    assert plan.read_bytes(torch.float32) == round(on_average)
    full = Compression("ALLKV").recipe(STEPS)
    full_plan = CachePlan.make(model.config, full, STEPS, [len(PROMPTS[0])])
    assert full_plan.read_bytes(torch.float32) == full_plan.kv_bytes(torch.float32) == held - lists
    with patch(model):
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        for step in range(STEPS):
            session.step(torch.full((3,), step))
    cache = session.cache
    assert cache.kv_bytes == 3 * held
    assert cache.full_share == (0 if threshold == -1 else (STEPS // 3) / STEPS)
    nothing_full = layers * heads * 8 * token + lists
    assert plan.read_bytes(torch.float32, 0.0) == nothing_full
    moved = refreshkv(working_set=8, stride=3, threshold=threshold, offload=True)
    far = CachePlan.make(model.config, moved.recipe(STEPS), STEPS, [len(PROMPTS[0])])
    assert far.kv_bytes(torch.float32) == nothing_full
    assert far.host_bytes(torch.float32) == held - lists
    row = plan.row_bytes(torch.float32) - held + nothing_full
    assert far.row_bytes(torch.float32) == row
    assert far.rows_within(torch.float32, 9 * row, host_room=4 * held) == 4
    assert far.rows_within(torch.float32, 9 * row, host_room=99 * held) == 9
    assert far.rows_within(torch.float32, 9 * (row + held), host_room=None) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"working_set": 0}, "working_set is 0; it must be at least 1"),
        ({"stride": 0}, "stride is 0; it must be at least 1"),
        ({"threshold": 1.5}, "threshold is 1.5; a cosine is from -1 to 1"),
        ({"decoding_score": "current"}, "decoding_score is not an option of refreshkv"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("ALLKV", "refreshkv", **options)
