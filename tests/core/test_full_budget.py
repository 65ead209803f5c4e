"""With a budget that nothing exceeds, the model's own logits come out."""

from functools import cache

import pytest
import torch
from torch import Tensor

from scope import Compression, SlotCache, patch
from tests.core.tiny import (
    PAIRS,
    SLIDING_WINDOW,
    left_padded,
    random_tokens,
    tiny_heads,
    tiny_model,
)

LENGTHS, STEPS = [SLIDING_WINDOW + 5, SLIDING_WINDOW - 3], 6
TEXTS = [random_tokens(length + STEPS, seed=length) for length in LENGTHS]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_name", ["mha", "gqa", "mistral", "qwen2"])
@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_logits_are_the_unpatched_models(
    method: str, strategy: str, model_name: str, attn_implementation: str
) -> None:
    model = tiny_model(model_name, attn_implementation=attn_implementation)
    compression = Compression.from_shared(
        method, strategy, max_capacity_prompt=20, decoding_recent_size=8, heads=tiny_heads()
    )
    slots = SlotCache(model.config, compression, STEPS)
    prompts = [text[:length] for text, length in zip(TEXTS, LENGTHS, strict=True)]
    with patch(model), torch.inference_mode():
        logits = [model(**left_padded(prompts), past_key_values=slots).logits[:, -1]]
        for step in range(STEPS):
            tokens = [[text[length + step]] for text, length in zip(TEXTS, LENGTHS, strict=True)]
            logits.append(
                model(input_ids=torch.tensor(tokens), past_key_values=slots).logits[:, -1]
            )
    expected = _unpatched_logits(model_name, attn_implementation)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected, rtol=0, atol=1e-4)


@cache
def _unpatched_logits(model_name: str, attn_implementation: str) -> Tensor:
    """``[rows, steps, vocabulary]`` of one forward over each whole text."""
    model = tiny_model(model_name, attn_implementation=attn_implementation)
    with torch.inference_mode():
        return torch.stack(
            [
                model(input_ids=torch.tensor([text])).logits[0, length - 1 :]
                for text, length in zip(TEXTS, LENGTHS, strict=True)
            ]
        )


def test_the_sliding_window_is_active() -> None:
    """Guards the test above: without its window, this Mistral says something else."""
    model = tiny_model("mistral")
    text = torch.tensor(TEXTS[:1])
    with torch.inference_mode():
        with_window = model(input_ids=text).logits
        model.config.sliding_window = None
        without = model(input_ids=text).logits
    assert (with_window - without)[:, SLIDING_WINDOW:].abs().max() > 0.1
