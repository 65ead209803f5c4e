"""What is drawn depends on names alone, and follows the model's probabilities."""

import math

import pytest
import torch

from scope import patch
from scope.generation import greedy
from scope.generation.greedy import generate
from scope.generation.sampling import Sampler, text_number
from scope.generation.session import Session
from scope.kernels import reference
from scope.kernels.tensors import mixed
from tests.core.tiny import compression_of, random_tokens, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 12
PROMPTS = [random_tokens(length, seed=length) for length in (9, 17, 13, 11)]


def keys(count: int) -> torch.Tensor:
    return mixed(torch.arange(count))


def test_draws_follow_the_softmax() -> None:
    scores = torch.tensor([0.0, -math.inf, 2.0, 1.0])
    drawn = reference.sample(scores.expand(20_000, -1), keys(20_000))
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, scores.softmax(0), rtol=0, atol=0.012)


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """Of as many equal tokens as a vocabulary has, each half is drawn half the times."""
    drawn = reference.sample(torch.zeros(1, 50_000).expand(800, -1), keys(800))
    assert len(drawn.unique()) > 780  # 794 are to be expected
    assert abs((drawn < 25_000).double().mean() - 0.5) < 0.06


@pytest.mark.parametrize("width", [5, 128, 9_000])
def test_the_kernel_draws_the_same(width: int) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    from scope.kernels.triton import pointwise

    scores = 3 * torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    scores[:, 1::3] = -torch.inf
    drawn = pointwise.sample(scores.to(DEVICE), keys(40).to(DEVICE))
    assert drawn.tolist() == reference.sample(scores, keys(40)).tolist()
    assert len(drawn.unique()) > 2


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (4, 0.8), (1, 1.0), (0, 1e-6), (99, 0.9)]
)
def test_only_the_likeliest_are_drawn(top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    sampler = Sampler([], 1.5, top_k, top_p)
    probabilities = (logits[0] / 1.5).softmax(0).tolist()
    order = sorted(range(12), key=lambda token: -probabilities[token])[: top_k or 12]
    total, allowed, mass = sum(probabilities[token] for token in order), [], 0.0
    for token in order:
        if mass >= top_p:
            break
        allowed.append(token)
        mass += probabilities[token] / total
    count = 30_000
    places = torch.zeros(count, dtype=torch.int64)
    drawn = sampler.choose(logits.expand(count, -1), keys(count), places)
    shares = drawn.bincount(minlength=12) / count
    expected = torch.zeros(12)
    expected[allowed] = torch.tensor([probabilities[token] for token in allowed])
    torch.testing.assert_close(shares, expected / expected.sum(), rtol=0, atol=0.012)
    assert set(drawn.tolist()) <= set(allowed)


def sampled(
    order: list[int], batch_size: int, ends: tuple[int, ...] = (), seed: int = 0, least: int = 0
) -> dict[int, list[int]]:
    """Two texts after each prompt, in this order; by prompt and text."""
    model, compression = tiny_model("gqa"), compression_of("H2O", "slide")
    numbers = [text_number(seed, *divmod(item, 2)) for item in order]
    prompts = [PROMPTS[item // 2] for item in order]
    with patch(model):
        session = Session(model, compression, prompts, STEPS, batch_size)
        sampler = Sampler(numbers, 1.2, top_k=60, top_p=0.95)
        found = dict(generate(session, STEPS, ends, least, sampler=sampler))
    return {order[index]: generation.tokens for index, generation in found.items()}


@pytest.mark.parametrize("steps", [1, 3])
def test_neither_batch_nor_order_changes_what_is_drawn(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(range(2 * len(PROMPTS)))
    free = sampled(items, batch_size=1)
    ends = (free[0][2], free[3][5])
    single = sampled(items, 1, ends)
    assert len({len(tokens) for tokens in single.values()}) > 1
    assert all(single[2 * i] != single[2 * i + 1] for i in range(len(PROMPTS)))
    monkeypatch.setattr(greedy, "_steps_per_look", lambda device: steps)
    monkeypatch.setattr(greedy, "_looks_ahead", lambda device: steps // 2)
    assert sampled(items, 3, ends) == single
    assert sampled(items[::-1], 3, ends) == single
    assert sampled(items[3:6], 2, ends) == {item: single[item] for item in items[3:6]}
    assert sampled(items, 3, ends, seed=1) != single
    late = sampled(items, 3, ends, least=4)
    assert min(map(len, late.values())) > 4
