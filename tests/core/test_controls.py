"""The controls among the decoding scores: age and chance."""

import pytest
import torch

from scope import Compression, patch
from scope.generation.session import Session
from tests.core.tiny import random_tokens, tiny_model

PROMPT, STEPS, WINDOW, RECENT = 12, 60, 20, 4


def kept_decode_positions(score: str, prompts: list[list[int]], **options: int) -> torch.Tensor:
    """``[layers, B, H, W]`` generated positions held in the end, counted from the prompt's end."""
    compression = Compression(
        "ALLKV",
        "slide",
        decoding_window_size=WINDOW,
        decoding_recent_size=RECENT,
        decoding_score=score,
        **options,
    )
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, prompts, STEPS)
        session.prefill()
        for step in range(STEPS):
            session.step(torch.full((len(prompts),), step + 1))
        held = torch.stack([layer.positions for layer in session.cache.layers])
    return held[held >= PROMPT].view(*held.shape[:3], WINDOW).sort().values - PROMPT


def test_recent_keeps_the_last() -> None:
    held = kept_decode_positions("recent", [random_tokens(PROMPT, seed=0)])
    assert (held == torch.arange(STEPS - WINDOW, STEPS)).all()


def test_random_is_uniform_and_the_same_in_a_batch() -> None:
    prompts = [random_tokens(PROMPT, seed=seed) for seed in range(2)]
    held = kept_decode_positions("random", prompts)
    for row, prompt in enumerate(prompts):
        assert torch.equal(held[:, row], kept_decode_positions("random", [prompt])[:, 0])
    assert len(held.flatten(0, 2).unique(dim=0)) == 3 * 2 * 2  # every prompt, layer, head its own
    older = held[..., : WINDOW - RECENT].float()
    # 192 draws from 0..55 have a mean of 27.5 with a standard error of 1.2.
    assert older.mean() == pytest.approx((STEPS - RECENT - 1) / 2, abs=4)


def test_random_draws_anew_for_every_seed() -> None:
    prompts = [random_tokens(PROMPT, seed=0)]
    once, again, other = (kept_decode_positions("random", prompts, seed=s) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
