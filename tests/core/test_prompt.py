"""What a compressor sees of a prompt, and what a prompt costs beside the model itself."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from scope import Fidelity, patch
from scope.attention import interface
from scope.attention.log_sum_exp import telling_attention
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

    def column_sums(*args: Any, **more: Any) -> Tensor:
        first_causal_rows.append(args[-2])
        return compute(*args, **more)

    monkeypatch.setattr(reference, "column_sums", column_sums)
    fidelity = Fidelity.preset("paper", causal_prefill_scores=causal)
    compression = compression_of("H2O", strategy, 12, 3, 7, 3, fidelity=fidelity)
    with patch(tiny_model("gqa", num_layers=1)) as model:
        Session(model, compression, [random_tokens(20, seed=0)], 10).prefill()
    assert first_causal_rows == expected


@pytest.mark.parametrize("method", ["H2O", "SnapKV"])
def test_what_attention_tells_of_its_rows_changes_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it is told there; torch's attention for a CPU can be asked likewise."""
    given: list[Tensor | None] = []
    compute = reference.column_sums

    def column_sums(*args: Any, **more: Any) -> Tensor:
        given.append(args[-1])
        return compute(*args, **more)

    def on_a_cpu(*states: Any) -> tuple[Tensor, Tensor]:
        *tensors, scaling = states
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, log_sum_exp = flash(*tensors, 0.0, True, scale=scaling)
        return output.transpose(1, 2), log_sum_exp

    monkeypatch.setattr(reference, "column_sums", column_sums)
    found = []
    for telling in (None, on_a_cpu):
        monkeypatch.setattr(interface, "telling_attention", lambda *args, it=telling: it)
        with patch(tiny_model("gqa")) as model:
            session = Session(
                model, compression_of(method, "slide", 12, 3, 7, 3), [random_tokens(31, seed=3)], 10
            )
            logits = session.prefill()
        found.append((logits, torch.stack([layer.positions for layer in session.cache.layers])))
    torch.testing.assert_close(*(logits for logits, _ in found), rtol=1e-4, atol=1e-4)
    assert found[0][1].equal(found[1][1])
    assert [told is not None for told in given] == [False] * 3 + [True] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])
@pytest.mark.parametrize("heads", [2, 8])
def test_attention_tells_the_sums_of_its_rows(heads: int, backend: SDPBackend) -> None:
    random = torch.Generator("cuda").manual_seed(0)
    states = [
        torch.randn(1, n, 300, 64, generator=random, device="cuda", dtype=torch.bfloat16)
        for n in (8, heads, heads)
    ]
    with sdpa_kernel(SDPBackend.MATH):
        assert telling_attention("sdpa", *states, None, {}) is None
    with sdpa_kernel(backend):
        attention = telling_attention("sdpa", *states, None, {})
    if attention is None:
        pytest.skip(f"this GPU has no {backend.name}")
    output, log_sum_exp = attention(*states, 0.2)
    expected = functional.scaled_dot_product_attention(
        *states, is_causal=True, scale=0.2, enable_gqa=True
    )
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-2, atol=1e-2)
    queries, keys = states[0].float(), states[1].float().repeat_interleave(8 // heads, 1)
    later = torch.ones(300, 300, dtype=torch.bool, device="cuda").triu(1)
    logits = (queries @ keys.transpose(2, 3) * 0.2).masked_fill(later, -torch.inf)
    torch.testing.assert_close(log_sum_exp, logits.logsumexp(-1), rtol=1e-3, atol=1e-3)


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
