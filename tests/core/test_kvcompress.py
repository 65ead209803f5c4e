"""KV-Compress: who stays equals blocks evicted one by one, and what that takes."""

from typing import Any

import pytest
import torch

from scope import Compression, ScopeError, patch
from scope.budgets.blocks import Blocks
from scope.generation.session import Session
from scope.registry import STRATEGIES
from tests.core.test_reference import SIZES, compare
from tests.core.tiny import random_tokens, tiny_model


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {"pyramidinfer", "refreshkv"}))
def test_equals_evicting_block_after_block(strategy: str) -> None:
    settings = {**SIZES, "decoding_score": "current"}
    compare("gqa", Compression.from_shared("KVCompress", strategy, **settings), seed=80)


@pytest.mark.parametrize(
    ("strategy", "fidelity", "words"),
    [
        ("pyramidinfer", "paper", "pyramidinfer cuts a layer"),
        ("slide", "upstream", "frozen_prefix capacity"),
    ],
)
def test_heads_that_keep_less_do_not_lose_what_they_do_not_have(
    strategy: str, fidelity: str, words: str
) -> None:
    with pytest.raises(ScopeError, match=f"unequal numbers of tokens, and {words}"):
        Compression.from_shared("KVCompress", strategy, fidelity=fidelity, **SIZES)


@pytest.mark.parametrize(
    ("model_name", "options"),
    [
        ("gqa", {"judged_by": "all"}),
        ("mistral", {"judged_by": "all", "block_size": 1}),
        ("mha", {"block_size": 4, "kernel_size": 1}),
        ("qwen2", {"block_size": 5, "protected_window": 9}),
    ],
)
def test_other_settings(model_name: str, options: dict[str, Any]) -> None:
    compression = Compression("KVCompress", **{**_sizes(), **options})
    compare(model_name, compression, seed=81)


def _sizes() -> dict[str, int]:
    read = ("max_capacity_prompt", "window_size", "protected_window", "block_size")
    return {name: SIZES[name] for name in read}


def test_memory_is_that_of_uniform_budgets_and_heads_differ() -> None:
    prompts, steps = [random_tokens(length, seed=length) for length in (40, 33)], 6
    sizes, caches = {**_sizes(), "decoding_window_size": 6}, []
    for budget in ("blocks", "uniform"):
        compression = Compression.from_shared("KVCompress", "slide", budget=budget, **sizes)
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, prompts, steps)
            session.prefill()
            caches.append(session.cache)
    blocks, uniform = caches
    assert blocks.kv_bytes == uniform.kv_bytes
    kept = torch.stack([(layer.opened().positions >= 0).sum(-1) for layer in blocks.layers])
    assert len(kept.unique()) > 2
    for row in range(len(prompts)):
        assert int(kept[:, row].sum()) <= kept[:, row].numel() * SIZES["max_capacity_prompt"]


def test_blocks_of_equal_worth_leave_from_the_first_layer_on() -> None:
    budget = Blocks(10, window_size=2, protected_window=4, block_size=4)
    shares = budget.share_out(torch.ones(2, 2, 5), length=18)
    # 10 blocks of 4 fit into 40 slots; of 20 that there are, two heads lose all five.
    assert shares.tolist() == [[0, 0], [18, 18]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protected_window": 13}, "takes 15 slots in blocks of 3"),
        ({"block_size": 0}, "block_size is 0"),
        ({"window_size": 5}, "at most protected_window 4"),
        ({"judged_by": "none"}, "window, all"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("KVCompress", **{**_sizes(), **options})
