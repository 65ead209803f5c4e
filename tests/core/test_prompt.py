"""What a compressor sees of a prompt, and what a prompt costs beside the model itself."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from scope import Fidelity, patch
from scope.generation.session import Session
from scope.kernels import reference
from scope.methods.prompt import Prompt
from tests.core.tiny import compression_of, random_tokens, tiny_model

HEADS, GROUP, LENGTH = 2, 3, 50


def attention(seed: int, window: int | None = None) -> Prompt:
    random = torch.Generator().manual_seed(seed)
    queries, keys = (
        torch.randn(heads, LENGTH, 16, generator=random) for heads in (HEADS * GROUP, HEADS)
    )
    hidden = torch.zeros(LENGTH, 4)
    return Prompt(queries, keys, keys, hidden, 0, scaling=0.3, sliding_window=window)


def whole_matrix(of: Prompt, first_row: int, first_causal_row: int) -> Tensor:
    """The same sums, all at once."""
    row, column = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    hidden = (column > row) & (row >= first_causal_row)
    if of.sliding_window is not None:
        hidden |= row - column >= of.sliding_window
    logits = of.queries @ of.keys.repeat_interleave(GROUP, 0).mT * of.scaling
    probabilities = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)[:, first_row:]
    return probabilities.sum(dim=1).view(HEADS, GROUP, LENGTH).mean(dim=1)


@pytest.mark.parametrize("rows_per_block", [1, 7, 256])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("rows", [(0, 0), (41, 0), (0, 41), (0, 20), (0, LENGTH), (30, 45)])
def test_blocks_add_up_to_the_whole_matrix(
    rows_per_block: int,
    window: int | None,
    rows: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "_ROWS_PER_BLOCK", rows_per_block)
    of = attention(seed=0, window=window)
    sums = of.received(LENGTH - rows[0], first_causal_row=rows[1])
    torch.testing.assert_close(sums, whole_matrix(of, *rows))


class Largest(TorchDispatchMode):
    """Counts the bytes of the largest tensor that any operation gives."""

    nbytes = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.nbytes = max(self.nbytes, result.numel() * result.element_size())
        return result


def test_a_block_takes_no_more_memory_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attention(seed=1).received()
    row = 12 * HEADS * GROUP * LENGTH
    for rows in (1, 5):
        monkeypatch.setattr(reference, "_BYTES_PER_BLOCK", rows * row + 1)
        of = attention(seed=1)
        with Largest() as largest:
            sums = of.received(first_causal_row=LENGTH)
        # Logits and probabilities are each a third of it; inputs are as large as a row or two.
        assert largest.nbytes <= max(rows * row / 3, of.queries.nbytes)
        torch.testing.assert_close(of.received(), whole)
        torch.testing.assert_close(sums, whole_matrix(of, 0, LENGTH))
    monkeypatch.setattr(reference, "_BYTES_PER_BLOCK", 1)  # a row is the least
    torch.testing.assert_close(attention(seed=1).received(), whole)


@pytest.mark.parametrize(
    ("strategy", "causal", "expected"),
    [("slide", True, [0]), ("h2o", True, [0]), ("slide", False, [17]), ("h2o", False, [17, 0])],
)
def test_equal_sums_are_computed_once(
    strategy: str, causal: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, first_causal_rows = reference.column_sums, []

    def column_sums(*args: Any) -> Tensor:
        first_causal_rows.append(args[-1])
        return compute(*args)

    monkeypatch.setattr(reference, "column_sums", column_sums)
    fidelity = Fidelity.preset("paper", causal_prefill_scores=causal)
    compression = compression_of("H2O", strategy, 12, 3, 7, 3, fidelity=fidelity)
    with patch(tiny_model("gqa", num_layers=1)) as model:
        Session(model, compression, [random_tokens(20, seed=0)], 10).prefill()
    assert first_causal_rows == expected


@pytest.mark.parametrize("model_name", ["gqa", "qwen2"])
def test_no_mask_of_a_prompt_is_made(model_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 128K tokens would take 17 GB."""
    attend, calls = functional.scaled_dot_product_attention, []

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return attend(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    prompts = [random_tokens(length, seed=2) for length in (20, 31)]
    with patch(tiny_model(model_name)) as model:
        Session(model, compression_of("H2O", "slide", 12, 3, 7, 3), prompts, 10).prefill()
    assert calls == [(None, True)] * len(prompts) * model.config.num_hidden_layers
