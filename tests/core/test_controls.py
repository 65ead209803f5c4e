"""The controls among the decoding scores: age and chance."""

import pytest
import torch

from scope import Compression, patch
from scope.generation.session import Session
from tests.core.tiny import random_tokens, tiny_model

PROMPT, STEPS, WINDOW, RECENT = 12, 60, 20, 4


def kept_decode_positions(score: str, prompts: list[list[int]]) -> torch.Tensor:
    """``[layers, B, H, W]`` generated positions held in the end, counted from the prompt's end."""
    compression = Compression(
        "ALLKV",
        "slide",
        decoding_window_size=WINDOW,
        decoding_recent_size=RECENT,
        decoding_score=score,
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
    assert torch.equal(held, kept_decode_positions("random", prompts[:1]).expand_as(held))
    assert len(held[:, 0].flatten(0, 1).unique(dim=0)) == 3 * 2  # every layer and head its own
    older = held[:, 0, :, : WINDOW - RECENT].float()
    # 96 draws from 0..55 have a mean of 27.5 with a standard error of 1.65.
    assert older.mean() == pytest.approx((STEPS - RECENT - 1) / 2, abs=5)
