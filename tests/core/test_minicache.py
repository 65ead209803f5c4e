"""MiniCache: two layers hold one direction, memory is that, and the rest stays as it is."""

import math

import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.methods.minicache import directions, distances, is_merged
from tests.core.tiny import random_tokens, tiny_model

PROMPTS = [random_tokens(length, seed=length) for length in (30, 17)]
STEPS = 5
POOL = {"decoding_window_size": 4, "decoding_recent_size": 2}
MERGED = {"merged_layers": 0.5, "unmerged_share": 0.1, "whole_sinks": 2, "whole_recent": 3}


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector]


def slow_angle(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(unit(a), unit(b), strict=True))
    return math.acos(max(-1.0, min(1.0, dot)))


def slow_direction(a: list[float], b: list[float]) -> list[float]:
    angle, t = slow_angle(a, b), 0.6
    shares = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [shares[0] * x + shares[1] * y for x, y in zip(unit(a), unit(b), strict=True)]


def test_directions_are_between_the_two() -> None:
    random = torch.Generator().manual_seed(0)
    lower, upper = torch.randn(2, 20, 6, generator=random)
    found, apart = directions(lower, upper), distances(lower, upper)
    for i, (a, b) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        assert found[i].tolist() == pytest.approx(slow_direction(a, b), abs=1e-5)
        assert float(apart[i]) == pytest.approx(slow_angle(a, b) / math.pi, abs=1e-5)


def test_the_same_and_the_opposite_have_a_direction() -> None:
    one = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(directions(one, 2 * one), one / 5)
    torch.testing.assert_close(directions(one, -one), -one / 5)


@pytest.mark.parametrize(
    ("share", "layers", "merged"),
    [
        (0.5, 4, [2, 3]),
        (0.5, 7, [4, 5]),
        (0.5, 32, range(16, 32)),
        (1.0, 3, [0, 1]),
        (0.0, 4, []),
    ],
)
def test_pairs_are_the_deepest_layers(share: float, layers: int, merged: list[int]) -> None:
    assert is_merged(share, layers).nonzero()[0].tolist() == list(merged)


def run(num_layers: int = 4, **options: object) -> tuple[Session, Tensor]:
    with patch(tiny_model("gqa", num_layers=num_layers)) as model:
        compression = Compression("ALLKV", "slide", **options, **POOL)
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        return session, steps_of(session)


def steps_of(session: Session) -> Tensor:
    return torch.stack([session.step(torch.full((2,), t)).clone() for t in range(STEPS)])


def test_the_likest_tokens_have_one_direction_and_their_own_lengths() -> None:
    """Against a cache whose keys and values are replaced in plain loops."""
    merged = run(**MERGED)[1]
    with patch(tiny_model("gqa", num_layers=4)) as model, torch.inference_mode():
        plain = Session(model, Compression("ALLKV", "slide", **POOL), PROMPTS, STEPS)
        plain.prefill()
        lower, upper = plain.cache.layers[2:]
        for row, prompt in enumerate(PROMPTS):
            middle = range(2, len(prompt) - 3)
            for head in range(2):
                apart = {
                    i: sum(
                        slow_angle(a[row, head, i].tolist(), b[row, head, i].tolist())
                        for a, b in ((lower.keys, upper.keys), (lower.values, upper.values))
                    )
                    for i in middle
                }
                count = len(middle) - math.ceil(0.1 * len(middle))
                for i in sorted(middle, key=lambda i: apart[i])[:count]:
                    for a, b in ((lower.keys, upper.keys), (lower.values, upper.values)):
                        pair = a[row, head, i].tolist(), b[row, head, i].tolist()
                        direction = slow_direction(*pair)
                        for states, own in zip((a, b), pair, strict=True):
                            length = math.hypot(*own)
                            states[row, head, i] = torch.tensor([length * x for x in direction])
        expected = steps_of(plain)
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)
    assert (run()[1] - expected).abs().max() > 0.1


def test_nothing_merged_is_the_plain_cache() -> None:
    torch.testing.assert_close(run(**(MERGED | {"unmerged_share": 1.0}))[1], run()[1])


def test_bytes_are_of_one_direction_and_two_lengths() -> None:
    session, _ = run(**MERGED)
    lengths = [len(prompt) for prompt in PROMPTS]
    compression = Compression("ALLKV", "slide", **MERGED, **POOL)
    plan = CachePlan.make(session.model.config, compression.recipe(STEPS), STEPS, lengths)
    count = 25 - math.ceil(0.1 * 25)
    numbers = 2 * 2 * (2 * (30 + 4 + 1) * 16)  # two layers as ever, keys and values, two heads
    numbers += 2 * 2 * (2 * (30 - count + 4 + 1) * 16 + count * 16 + 2 * count)
    assert plan.kv_bytes(torch.float32) == 4 * numbers
    assert session.cache.kv_bytes == 2 * 4 * numbers
    # Both layers read the directions.
    assert plan.read_bytes(torch.float32) == 4 * (numbers + 2 * 2 * count * 16)


@pytest.mark.parametrize(
    ("method", "strategy", "options", "told"),
    [
        ("ALLKV", "h2o", {}, "merged_layers needs a prompt pool that never changes"),
        ("ALLKV", "slide", {"prompt_bits": 8}, "do not go together"),
        ("ALLKV", "slide", {"share_layers": "1=0"}, "do not go together"),
        ("ALLKV", "slide", {"merged_layers": 1.5}, "from 0 to 1"),
        ("H2O", "slide", {}, "merged_layers holds a token for two layers, and H2O keeps other"),
        ("ALLKV", "slide", {"merged_layers": None}, "says nothing without merged_layers"),
    ],
)
def test_what_cannot_be_is_refused(
    method: str, strategy: str, options: dict[str, object], told: str
) -> None:
    with pytest.raises(ScopeError, match=told):
        Compression(method, strategy, **(POOL | MERGED | options))
