"""ThinK: the channels of plain loops, really not stored; what is stored counts as it is."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.methods.prompt import FREE, Entries, Prompt
from scope.methods.think import best_channels
from tests.core.tiny import random_tokens, tiny_model
from tests.examples.value_norm import ValueNorm

PROMPTS = [random_tokens(length, seed=length) for length in (50, 20, 9)]
STEPS = 8
POOL = {"decoding_window_size": 5, "decoding_recent_size": 2}
PRUNED = {"pruned_channels": 0.4, "pruning_queries": 5, "whole_sinks": 2, "whole_recent": 6}
KEPT = 16 - 6  # of 16 channels, int(0.4 * 16) go


def slow_channels(queries: Tensor, keys: Tensor, held: list[bool], count: int) -> list[int]:
    """Of one head: queries ``[g, w, D]`` and keys ``[P, D]``."""
    worth = []
    for channel in range(keys.shape[-1]):
        asked = sum(float(q[channel]) ** 2 for head in queries for q in head)
        given = sum(float(k[channel]) ** 2 for k, there in zip(keys, held, strict=True) if there)
        worth.append((asked / len(queries) * given) ** 0.5)
    ranked = sorted(range(len(worth)), key=lambda c: (-worth[c], c))
    return sorted(ranked[:count])


def test_channels_are_those_of_plain_loops() -> None:
    random = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, m, 8, generator=random) for n, m in ((6, 4), (2, 9)))
    queries[:, :, 3] *= 5
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 3, 5, 8, *[FREE] * 5]])
    keys[1, 4:, 6] = 99.0  # of slots without a token
    found = best_channels(queries, Entries(keys, keys, positions), 5)
    for head in range(2):
        held = (positions[head] != FREE).tolist()
        own = queries[3 * head : 3 * head + 3]
        assert found[head].tolist() == slow_channels(own, keys[head], held, 5)


class Watched(ValueNorm):
    """Notes what it sees and answers."""

    seen: ClassVar[list[tuple[Prompt, Entries]]] = []

    def compress(self, prompt: Prompt, share: int) -> Entries:
        entries = super().compress(prompt, share)
        self.seen.append((prompt, entries))
        return entries


@pytest.mark.parametrize("model_name", ["gqa", "mistral"])
def test_a_step_is_that_of_whole_keys_without_these_channels(model_name: str) -> None:
    """Only the middle of what is held loses them, and no key that is generated."""
    prompts, sizes = PROMPTS[:2], {"max_capacity_prompt": 15, "window_size": 3, **POOL}
    pruning, Watched.seen[:] = Compression(Watched, "slide", **PRUNED, **sizes), []
    with patch(tiny_model(model_name)) as model, torch.inference_mode():
        plain = Session(model, Compression(ValueNorm, "slide", **sizes), prompts, STEPS)
        pruned = Session(model, pruning, prompts, STEPS)
        for session in (plain, pruned):
            session.prefill()
        for prompt, entries in Watched.seen:
            keys = plain.cache.layers[prompt.layer].keys[int(prompt.length == 20)]
            for head in range(2):
                own = prompt.queries[2 * head : 2 * head + 2, -5:]
                kept = slow_channels(own, entries.keys[head], [True] * 15, KEPT)
                keys[head, 2 : 15 - 6, [c for c in range(16) if c not in kept]] = 0.0
        for step in range(STEPS):
            tokens = torch.full((2,), step)
            torch.testing.assert_close(
                pruned.step(tokens), plain.step(tokens), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    ("few", "middle", "whole", "of_one", "stored"),
    [
        # Of 50 tokens 42 are neither among the first 2 nor the last 6.
        ({}, 42, 8, 4 * (KEPT + 16), KEPT),
        # Two groups of 16 are; 18 tokens of 50 stay whole. Grids of keys are shared by a group.
        (
            {"prompt_bits": 4, "rounding_group": 16, "pruned_channels": 0.5},
            32,
            20,
            (8 + 16) / 2 + 2 * 2 * 8 / 16 + 2 * 2,
            8,
        ),
    ],
    ids=["as they are", "4 bits"],
)
def test_bytes_are_those_of_the_channels(
    few: dict[str, float], middle: int, whole: int, of_one: float, stored: int
) -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    compression = Compression("ALLKV", "slide", **(PRUNED | few), **POOL)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        plan = CachePlan.make(model.config, compression.recipe(STEPS), STEPS, lengths)
        kv_bytes = session.cache.kv_bytes
        session.step(torch.zeros(3, dtype=torch.int64))
    pairs, of_whole = 3 * 2, 2 * 16 * 4
    expected = pairs * ((whole + 5 + 1) * of_whole + middle * of_one + 4 * stored)
    assert plan.kv_bytes(torch.float32) == expected
    assert kv_bytes == len(PROMPTS) * expected
    read = pairs * ((50 - middle + 1) * of_whole + middle * of_one)
    assert session.cache.held_bytes()[0] == read


@pytest.mark.parametrize(
    ("strategy", "options", "told"),
    [
        ("h2o", PRUNED, "pruned_channels needs a prompt pool that never changes"),
        ("slide", {"pruned_channels": 1.0}, "at least 0 and below 1"),
        ("slide", {"pruning_queries": 8}, "says nothing without pruned_channels"),
        ("slide", {**PRUNED, "pruning_queries": 0}, "must be at least 1"),
        ("slide", {**PRUNED, "rounding_group": 16}, "says nothing without prompt_bits"),
    ],
)
def test_what_cannot_be_is_refused(strategy: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(ScopeError, match=told):
        Compression("ALLKV", strategy, **POOL, **options)
