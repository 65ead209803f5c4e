"""Rows without a prompt are fed with the others, touch nothing of theirs, and can start over."""

import pytest
import torch
from torch import Tensor

from scope import Compression, Fidelity, ScopeError, patch
from scope.cache import writing
from scope.generation.session import Session
from tests.core.tiny import backend, random_tokens, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = [random_tokens(length, seed=length) for length in (14, 9, 11)]
SIZES = {
    "max_capacity_prompt": 5,
    "window_size": 2,
    "decoding_window_size": 3,
    "decoding_recent_size": 1,
}
UPSTREAM = Fidelity.preset("upstream")
COMPRESSIONS = [
    Compression("SnapKV", "slide", **SIZES),
    Compression("H2O", "h2o", **SIZES),
    # The first C entries are frozen, and one clock counts layer calls.
    Compression.from_shared("H2O", "discontinuous", **SIZES, delta=4, fidelity=UPSTREAM),
    # Entries are protected that do not come from the prompt.
    Compression.from_shared("StreamingLLM", "slm", **SIZES, fidelity=UPSTREAM),
]


@pytest.mark.filterwarnings("ignore:decoding goes the slow way")
@pytest.mark.parametrize(
    ("compression", "fused"),
    [*((c, False) for c in COMPRESSIONS), (COMPRESSIONS[0], True), (COMPRESSIONS[-1], True)],
    ids=lambda value: getattr(value, "decoding_metric", value),
)
def test_idle_rows(compression: Compression, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "backend_for", lambda keys: backend(fused))
    # One layer is enough for the interpreter; the clock wants several.
    model, new = tiny_model("gqa", num_layers=1 if fused else 3).to(DEVICE), 20

    def session(*admitted: int) -> Session:
        session = Session(model, compression, PROMPTS, new)
        for row in admitted:
            session.admit(row, row)
        return session

    def steps(session: Session, count: int, first: int = 0) -> Tensor:
        """Logits of every row: ``[count, B, vocabulary]``."""
        tokens = torch.arange(first, first + count)[:, None] + torch.tensor([0, 40, 80])
        return torch.stack([session.step(row.to(DEVICE)).clone() for row in tokens])

    with patch(model):
        # Two rows of three are idle, one of which has held a prompt.
        some = session(0, 2)
        steps(some, 2)
        some.release(2)
        long = max(layer.keys.shape[2] for layer in some.cache.layers) + 1
        left = steps(some, long, first=2)[:, 0]
        everyone = session(0, 1, 2)
        steps(everyone, 2)
        assert torch.equal(left, steps(everyone, long, first=2)[:, 0])
        # All start over, and go on as if nothing had been.
        for row in range(3):
            some.admit(row, row)
        fresh = session(0, 1, 2)
        torch.testing.assert_close(steps(some, 4), steps(fresh, 4), rtol=0, atol=1e-4)


def test_a_step_needs_some_prompt() -> None:
    model = tiny_model("gqa", num_layers=1)
    session = Session(model, COMPRESSIONS[0], PROMPTS, 4)
    with patch(model):
        session.admit(1, 0)
        session.release(1)
        with pytest.raises(ScopeError, match="the cache has 3, 0 of them with a prompt"):
            session.step(torch.tensor([1, 2, 3]))


def test_nothing_is_left_of_an_overflow() -> None:
    """What a row's last example has left in its slots does not reach the next one."""
    model = tiny_model("gqa").to(DEVICE)
    with patch(model), torch.inference_mode():
        fresh, used = (Session(model, COMPRESSIONS[0], PROMPTS, 20) for _ in range(2))
        used.prefill()
        for _ in range(6):
            used.step(torch.tensor([1, 2, 3], device=DEVICE))
        for layer in used.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
        for row, prompt in enumerate([1, 1, 0]):
            used.release(row)
            used.admit(row, prompt)
            fresh.admit(row, prompt)
        for token in range(8):
            tokens = torch.full((3,), token, device=DEVICE)
            torch.testing.assert_close(used.step(tokens), fresh.step(tokens))
