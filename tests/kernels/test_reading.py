"""Prompts that are padded and compressed in all layers at once are held as one by one."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scope import Compression, patch
from scope.attention import joined as joined_module
from scope.cache import writing
from scope.cache.cache import SlotCache
from scope.generation import reading
from scope.generation.reading import PromptReader
from scope.generation.session import Session
from scope.registry import COMPRESSORS
from tests.core.tiny import backend, compression_of, random_tokens, tiny_model

pytest.importorskip("triton", reason="the kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Row 0 is taken again, by a shorter prompt; 128 needs no padding, and 20 are held whole.
PROMPTS = [random_tokens(length, seed=length) for length in (90, 128, 20)]
ROWS = [0, 1, 0]
SIZES = (40, 8, 4, 2)
FEW: dict[str, Any] = {"prompt_bits": 4, "pruned_channels": 0.5, "whole_recent": 8}
HEADWISE = [name for name, compressor in COMPRESSORS.items() if compressor.headwise]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Logits of the prompts, the cache after them, and lengths that were padded."""
    monkeypatch.setattr(reading, "_OFTEN", 1)
    if DEVICE == "cpu":  # a record is the function itself
        monkeypatch.setattr(reading, "Graphed", lambda function, work: lambda x, kind: function(x))

    def read(
        compression: Compression, fused: bool, model_name: str = "gqa"
    ) -> tuple[Tensor, SlotCache, list[int]]:
        model = tiny_model(model_name, num_layers=2).to(DEVICE)
        monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys: fused)
        monkeypatch.setattr(writing, "backend_for", lambda keys: backend(fused))
        monkeypatch.setattr(Session, "_reads_fused", lambda session, length: fused)
        padded, read_padded = [], PromptReader._read_padded

        def counted(reader: PromptReader, prompt: Tensor) -> Tensor:
            padded.append(len(prompt))
            return read_padded(reader, prompt)

        monkeypatch.setattr(PromptReader, "_read_padded", counted)
        with patch(model):
            session = Session(model, compression, PROMPTS, 8, batch_size=2)
            logits = [session.admit(row, index) for index, row in enumerate(ROWS)]
        monkeypatch.setattr(PromptReader, "_read_padded", read_padded)
        return torch.stack(logits), session.cache, padded

    return read


def held(cache: SlotCache) -> list[Tensor]:
    parts = []
    for layer in cache.layers:
        free = (layer.positions < 0)[..., None]
        keys = layer.keys.masked_fill(free, 0.0)  # what was there before
        whole = (keys, layer.values, layer.positions, layer.ranks, layer.vacant, layer.draw)
        parts += [*whole, *layer.state.values()]
        if (compact := layer.compact) is not None:
            codes = compact.keys, compact.values
            parts += [part for one in codes for part in (one.packed, one.grid)]
            parts += [compact.positions, compact.count, compact.channels]
            parts += [torch.tensor(compact.filled)]
    return parts


@pytest.mark.parametrize(
    ("compression", "model_name"),
    [
        *(
            (compression_of(name, "slide", *SIZES), "gqa")
            for name in HEADWISE
            if name not in ("H2O", "SnapKV")
        ),
        (compression_of("H2O", "slide", *SIZES, decoding_score="cumulative"), "qwen2"),
        (compression_of("SnapKV", "adaptive", *SIZES, decoding_score="random"), "qwen3"),
        *(
            (compression_of(name, "slide", *SIZES, rounding_group=16, **FEW, **more), "gqa")
            for name, more in (("ALLKV", {}), ("H2O", {"prompt_value_bits": 2}))
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.method,
)
def test_all_layers_at_once(
    compression: Compression, model_name: str, reads: Callable[..., Any]
) -> None:
    expected, theirs, none = reads(compression, False, model_name)
    logits, cache, padded = reads(compression, True, model_name)
    assert (padded, none) == ([90, 128, 20], [])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for ours, own in zip(held(cache), held(theirs), strict=True):
        exactly = {"rtol": 0, "atol": 0}
        close = {"rtol": 1e-4, "atol": 1e-4} if ours.is_floating_point() else exactly
        torch.testing.assert_close(ours, own, **close)
    assert [layer.used for layer in cache.layers] == [layer.used for layer in theirs.layers]


@pytest.mark.parametrize(
    ("method", "strategy", "settings", "together"),
    [
        ("H2O", "slide", {}, True),
        ("LoCoCo", "slide", {}, False),
        ("SnapKV", "slide", {"budget": "pyramid"}, False),
        ("ZigZagKV", "slide", {}, False),
        ("H2O", "h2o", {}, False),
        ("ALLKV", "refreshkv", {}, False),
        ("H2O", "slide", {"share_heads": True}, False),
        ("H2O", "slide", {"share_layers": "1=0"}, False),
        ("H2O", "slide", {"decode_bits": 8}, False),
        ("H2O", "slide", {"prompt_bits": 4}, True),
        ("ALLKV", "slide", {"pruned_channels": 0.5}, True),
        ("ALLKV", "slide", {"merged_layers": 1.0}, False),
        ("H2O", "slide", {"fidelity": "upstream"}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_which_layers_are_stored_together(
    method: str,
    strategy: str,
    settings: dict[str, Any],
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SlotCache, "fused", True)
    compression = compression_of(method, strategy, *SIZES, **settings)
    with patch(tiny_model("gqa", num_layers=2)) as model:
        session = Session(model, compression, PROMPTS, 8)
        session.admit(0, 0)
    assert session.cache.stores_together(90) == together


def test_a_subclass_says_so_anew() -> None:
    class Other(COMPRESSORS["H2O"]):  # type: ignore[misc]
        pass

    assert COMPRESSORS["H2O"].headwise
    assert not Other.headwise


def test_without_room_for_a_record(
    reads: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> Tensor:
        raise torch.OutOfMemoryError

    compression = compression_of("ALLKV", "slide", *SIZES)
    expected, theirs, _ = reads(compression, True)
    monkeypatch.setattr(reading, "Graphed", lambda function, work: full)
    with pytest.warns(UserWarning, match="without CUDA graphs: out of memory"):
        logits, cache, padded = reads(compression, True)
    assert padded == [90, 128, 20]
    assert torch.equal(logits, expected)
    assert all(map(torch.equal, held(cache), held(theirs)))


@pytest.mark.parametrize(("most", "recorded"), [(2, {384, 512}), (4, {128, 384, 512})])
def test_which_lengths_are_recorded(
    most: int, recorded: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most frequent ones, but for those of few prompts or too large for the room."""
    monkeypatch.setattr(SlotCache, "fused", True)
    monkeypatch.setattr(reading, "_RECORDS", most)
    token = 2 * (4 + 2 + 2) * 16 * 4  # layers, heads, their size and a number's bytes
    monkeypatch.setattr(reading, "_ROOM", 600 * token)
    lengths = [100] * 5 + [130] * 4 + [300, 380] * 3 + [390] * 7 + [520] * 9
    model = tiny_model("gqa", num_layers=2)
    cache = SlotCache(model.config, compression_of("ALLKV", "slide", *SIZES), 8, 2, lengths)
    reader = PromptReader(model, cache, lengths)
    assert reader._frequent == recorded
    assert reader._states[0].shape[2] == 512


def test_what_is_left_of_a_session_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job's slots are made before Python looks for circles."""
    monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys: True)
    monkeypatch.setattr(writing, "backend_for", lambda keys: backend(True))
    monkeypatch.setattr(Session, "_reads_fused", lambda session, length: True)
    gc.disable()
    try:
        with patch(tiny_model("gqa", num_layers=2).to(DEVICE)) as model:
            session = Session(model, compression_of("H2O", "slide", *SIZES), PROMPTS, 8, 1)
            session.step(session.admit(0, 0).argmax()[None])
            cache = weakref.ref(session.cache)
            del session
        assert cache() is None
    finally:
        gc.enable()
