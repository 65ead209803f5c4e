"""Layers that attend to another's slots: KVSharer, with every strategy and compressor."""

from typing import Any

import pytest
import torch

from scope import Compression, ScopeError, SlotCache, patch
from scope.generation.session import Session
from scope.registry import COMPRESSORS, STRATEGIES
from scripts.calibrate_kvsharer import main, search
from tests.core.test_reference import SIZES, compare
from tests.core.tiny import compression_of, random_tokens, tiny_model

# Three layers, of which the last attends to the first's slots.
SHARED = {"share_layers": "2=0", "decoding_score": "current"}
WHOLE = sorted(STRATEGIES.keys() - {"refreshkv"})


@pytest.mark.parametrize("strategy", WHOLE)
def test_equals_the_slow_reference(strategy: str) -> None:
    compare("gqa", Compression.from_shared("H2O", strategy, **SIZES, **SHARED), seed=90)


@pytest.mark.parametrize("method", [name for name in COMPRESSORS if name != "H2O"])
def test_of_every_compressor(method: str) -> None:
    compare("gqa", Compression.from_shared(method, "slide", **SIZES, **SHARED), seed=91)


@pytest.mark.parametrize("pairs", ["1=0", "1=0,2=0"])
@pytest.mark.parametrize("model_name", ["mha", "mistral", "qwen2"])
def test_of_every_architecture(model_name: str, pairs: str) -> None:
    settings = {**SIZES, **SHARED, "share_layers": pairs}
    compare(model_name, Compression.from_shared("SnapKV", "h2o", **settings), seed=92)


@pytest.mark.parametrize("budget", [None, "zigzag"])
def test_memory_and_reading_are_counted(budget: str | None) -> None:
    """Two thirds of the slots, all of the reading."""
    held, planned, read, tokens = {}, {}, {}, {}
    for pairs in (None, "2=0"):
        choices = {} if budget is None else {"budget": budget}
        compression = compression_of("SnapKV", "slide", share_layers=pairs, **choices)
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, [random_tokens(20, seed=1)], 12)
            session.prefill()
            session.step(torch.tensor([1]))
        cache = session.cache
        stored = {part.data_ptr(): part for one in cache.layers for part in (one.keys, one.values)}
        assert cache.kv_bytes == sum(part.nbytes for part in stored.values())
        held[pairs], planned[pairs] = cache.kv_bytes, cache.plan.kv_bytes(torch.float32)
        tokens[pairs] = cache.plan.kv_tokens
        read[pairs] = cache.plan.read_bytes(torch.float32), cache.held_bytes().tolist()
    assert held == planned
    assert 3 * held["2=0"] == 2 * held[None]
    assert 3 * tokens["2=0"] == pytest.approx(2 * tokens[None])
    assert read["2=0"][0] == read[None][0]
    if budget is None:
        assert read["2=0"] == read[None]


def test_a_prompt_is_lent_no_longer_than_it_is_read() -> None:
    with patch(tiny_model("gqa", num_layers=4)) as model:
        compression = compression_of("SnapKV", "slide", share_layers="2=0,3=0")
        cache = SlotCache(model.config, compression, 4)
        model(input_ids=torch.tensor([random_tokens(20, seed=1)]), past_key_values=cache)
    assert not cache.lending._lent
    assert len(cache.layers) == 2


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("3", "expected pairs"),
        ("2=1,2=0", "names a layer twice"),
        ("0=1", "an earlier layer"),
        ("2=1,1=0", "an earlier layer that has slots"),
    ],
)
def test_bad_pairs_are_told(pairs: str, words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("SnapKV", share_layers=pairs)


@pytest.mark.parametrize(
    ("model_name", "pairs", "words"),
    [
        ("gqa", "3=0", "the model has 3"),
        ("qwen3-mixed", "1=0", "one kind"),
        ("smollm3", "2=1", "one kind"),
    ],
)
def test_layers_that_cannot_share_are_told(model_name: str, pairs: str, words: str) -> None:
    compression = Compression("SnapKV", share_layers=pairs)
    with pytest.raises(ScopeError, match=words):
        SlotCache(tiny_model(model_name).config, compression, 4)


def test_a_working_set_is_not_shared() -> None:
    choices: dict[str, Any] = {"decoding_metric": "refreshkv", "share_layers": "1=0"}
    with pytest.raises(ScopeError, match="leave share_layers out"):
        Compression("ALLKV", **choices)


def test_the_search_takes_the_most_unlike_and_makes_no_chains() -> None:
    model, texts = tiny_model("gqa", num_layers=5), [random_tokens(9, seed=n) for n in range(2)]
    states = []
    for text in texts:
        with torch.inference_mode():
            held = model(torch.tensor([text]), use_cache=True).past_key_values.layers
        states.append([torch.stack([one.keys, one.values]) for one in held])
    means = [sum(layer) / 2 for layer in zip(*states, strict=True)]
    apart = {
        (i, j): sum(float((a - b).norm()) for a, b in zip(means[i], means[j], strict=True))
        for j in range(5)
        for i in range(j)
    }
    expected: dict[int, int] = {}
    for i, j in sorted(apart, key=lambda pair: -apart[pair]):
        free = i not in expected and j not in expected and j not in expected.values()
        if free and len(expected) < 3:
            expected[j] = i
    found = list(search(model, texts, 3, least_similarity=-1.0))
    assert [len(shared) for shared, _ in found] == [1, 2, 3]
    assert found[-1][0] == expected
    assert not list(search(model, texts, 3, least_similarity=1.0))


def test_the_search_prints_what_the_option_takes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model_path", "scope/recall/model", "--num_prompts", "2", "--num_layers"]
    data = ["--data_file", "scope/recall/recall_32.jsonl"]
    assert main([*arguments, "1", *data]) == 0
    pairs = capsys.readouterr().out.strip()
    assert Compression(share_layers=pairs).options["share_layers"] == pairs
    assert main([*arguments, "4", *data]) == 2
    assert "lower --num_layers" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "0", *data])
    assert "expected a whole number above 0" in capsys.readouterr().err
