"""The kernels that add up a prompt's attention give what the plain torch path gives."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scope.kernels import reference
from scope.methods.prompt import Prompt

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.triton import backend
from scope.kernels.triton.column_sums import column_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = 0.3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# The interpreter cuts numbers off where a GPU rounds them to bfloat16.
ROUNDED = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]


@dataclass
class Case:
    """One prompt in one layer; what is given to `column_sums` as in its docstring."""

    length: int = 150
    heads: int = 1
    group: int = 2
    head_dim: int = 16
    window: int | None = None
    first_row: int = 0
    first_causal_row: int = 0

    def states(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Queries and keys, with the strides that they have in a model."""
        random = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(self.length, heads, self.head_dim, generator=random)
            .to(DEVICE, dtype)
            .transpose(0, 1)
            for heads in (self.heads * self.group, self.heads)
        )

    def sums(
        self,
        queries: Tensor,
        keys: Tensor,
        score_dtype: torch.dtype = torch.float32,
        log_sum_exp: Tensor | None = None,
    ) -> Tensor:
        rows = (self.first_row, self.first_causal_row)
        return column_sums(queries, keys, SCALING, self.window, score_dtype, *rows, log_sum_exp)

    def log_sum_exp(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Of every row, in float64."""
        return self.logits(queries, keys).logsumexp(-1).float()

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``[H_q, L, L]`` in float64, -inf where a row does not look."""
        keys = keys.double().repeat_interleave(self.group, 0)
        row, column = torch.arange(self.length)[:, None], torch.arange(self.length)
        hidden = (column > row) & (row >= self.first_causal_row)
        if self.window is not None:
            hidden |= column <= row - self.window
        logits = queries.double() @ keys.transpose(1, 2) * SCALING
        return logits.masked_fill(hidden.to(DEVICE), -torch.inf)

    def exact(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Of every query head, in float64, which the kernels are not for."""
        keys = keys.double().repeat_interleave(self.group, 0)
        rows = (self.first_row, self.first_causal_row)
        return reference.column_sums(
            queries.double(), keys, SCALING, self.window, torch.float32, *rows
        )


CASES = {
    "one block": Case(length=20),
    "one token": Case(length=1),
    "whole blocks": Case(length=128),
    "many blocks": Case(length=200, group=1),
    "one row too many": Case(length=65),
    "odd group": Case(group=3, heads=2, length=70),
    "head dim 128": Case(head_dim=128, length=70),
    "window over blocks": Case(window=90, length=200, group=1),
    "window in a block": Case(window=9),
    "window of one": Case(window=1, length=70),
    "last rows": Case(first_row=130),
    "later half": Case(first_row=77),
    "later half in a window": Case(first_row=77, window=20),
    "not causal": Case(first_causal_row=150),
    "not causal but for the last": Case(first_causal_row=142),
    "not causal at first": Case(first_causal_row=70),
    "not causal in a window": Case(first_causal_row=80, window=40),
    "from the middle, not causal": Case(first_row=50, first_causal_row=100),
    "from the middle, causal": Case(first_row=100, first_causal_row=50),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_torch_and_every_row_gives_one(case: Case) -> None:
    queries, keys = case.states()
    sums = case.sums(queries, keys)
    torch.testing.assert_close(sums, case.exact(queries, keys), **CLOSE)
    rows = torch.full(sums.shape[:1], case.length - case.first_row, dtype=torch.float32)
    torch.testing.assert_close(sums.sum(dim=1), rows.to(DEVICE), **CLOSE)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_whose_sums_are_known(case: Case) -> None:
    """Twice the true sum halves what a row gives, both ways."""
    queries, keys = case.states(seed=6)
    twice = case.log_sum_exp(queries, keys) + math.log(2)
    expected = case.exact(queries, keys) / 2
    torch.testing.assert_close(case.sums(queries, keys, log_sum_exp=twice), expected, **CLOSE)
    rows = (case.first_row, case.first_causal_row)
    plain = reference.column_sums(queries, keys, SCALING, case.window, torch.float32, *rows, twice)
    torch.testing.assert_close(plain, expected, **CLOSE)


@pytest.mark.parametrize(("squared", "lag"), [(True, 0), (False, 10), (True, 90)])
@pytest.mark.parametrize(
    "name", ["many blocks", "window over blocks", "later half", "not causal at first"]
)
def test_squares_and_rows_that_lag(name: str, squared: bool, lag: int) -> None:
    case = CASES[name]
    queries, keys = case.states(seed=7)
    attention = case.logits(queries, keys).softmax(-1)[:, case.first_row :]
    row = torch.arange(case.first_row, case.length, device=DEVICE)[:, None]
    column = torch.arange(case.length, device=DEVICE)
    attention[:, (column > row - lag) & (row >= case.first_causal_row)] = 0
    expected = (attention**2 if squared else attention).sum(dim=1).float()
    rows = (case.first_row, case.first_causal_row)
    for sums in (column_sums, reference.column_sums):
        given = sums(
            queries, keys, SCALING, case.window, torch.float32, *rows, squared=squared, lag=lag
        )
        torch.testing.assert_close(given, expected, **CLOSE)


def test_one_huge_logit() -> None:
    case = Case(window=90, length=130)
    queries, keys = case.states(seed=2)
    keys[:, 7] *= 1000.0
    torch.testing.assert_close(
        case.sums(queries, keys), case.exact(queries, keys), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("score_dtype", ROUNDED)
def test_probabilities_are_rounded_before_they_are_added(score_dtype: torch.dtype) -> None:
    case = Case(length=100, first_causal_row=100)
    queries, keys = case.states(seed=3)
    sums = case.sums(queries.zero_(), keys, score_dtype)
    expected = torch.tensor(1 / 100).to(score_dtype).float() * 100
    assert abs(expected - 1) > 2e-4
    torch.testing.assert_close(sums, expected.expand_as(sums).to(DEVICE), **CLOSE)


@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("score_dtype", [torch.float32, *ROUNDED])
def test_takes_the_place_of_torch(
    reduction: str, score_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows enough for the kernels go there and give the same scores."""
    monkeypatch.setattr(backend, "_FEW_ROWS", 32)
    sums = []
    for chosen in (reference, backend):
        queries, keys = Case(heads=2, length=70).states(seed=4)
        prompt = Prompt(
            queries,
            keys,
            keys,
            torch.zeros(70, 4),
            0,
            SCALING,
            score_dtype=score_dtype,
            backend=chosen,
        )
        sums.append(prompt.received(reduction=reduction))
    # Sums next to the middle between two numbers of the score dtype may go to either.
    tolerance = max(2 * torch.finfo(score_dtype).eps, 1e-4)
    torch.testing.assert_close(*sums, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(DEVICE == "cpu", reason="half precision is checked on a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("window", [None, 700])
def test_half_precision(dtype: torch.dtype, head_dim: int, window: int | None) -> None:
    case = Case(length=3001, heads=2, group=4, head_dim=head_dim, window=window)
    queries, keys = case.states(dtype, seed=5)
    torch.testing.assert_close(
        case.sums(queries, keys), case.exact(queries, keys).float(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU's count of memory")
def test_memory_is_linear() -> None:
    case = Case(length=20_000, heads=2, group=4, head_dim=64)
    queries, keys = case.states(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sums = case.sums(queries, keys)
    assert torch.cuda.max_memory_allocated() - before <= 3 * sums.nbytes
