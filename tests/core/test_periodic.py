"""Eviction in bursts, and the scores that are asked for nothing else."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scope import Compression, ScopeError, patch
from scope.generation.session import Session
from scope.methods.api import Slots
from scope.scores import rkv
from scope.scores.snapkv_decode import SnapKVDecode
from tests.core import test_reference
from tests.core.periodic_reference import PeriodicReference
from tests.core.test_open_house import PROMPTS, run
from tests.core.tiny import tiny_model

POOL = {"decoding_window_size": 6, "decoding_recent_size": 3, "period": 3}
SCORES = {
    "snapkv_decode": {"last_queries": 2},
    "morphkv": {"last_queries": 3, "fusion": "max"},
    "rkv": {"last_queries": 3, "attention_weight": 0.5},
    "rpc": {"last_queries": 3},
}
every_score = pytest.mark.parametrize("score", SCORES)


@every_score
@pytest.mark.parametrize("strategy", ["periodic", "slide", "h2o"])
@pytest.mark.parametrize("model_name", ["gqa", "mistral"])
def test_kept_sets_are_those_of_plain_loops(
    model_name: str, strategy: str, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (strategy, score) == ("h2o", "rpc"):
        pytest.skip("heads that hold different tokens of a prompt have no set in common")
    monkeypatch.setattr(test_reference, "SlowReference", PeriodicReference)
    compression = Compression.from_shared(
        "SnapKV",
        strategy,
        decoding_score=score,
        max_capacity_prompt=12,
        window_size=3,
        **POOL,
        **SCORES[score],
    )
    test_reference.compare(model_name, compression, seed=80)


def kept(compression: Compression) -> list[list[torch.Tensor]]:
    return run(compression, PROMPTS)[1]


@every_score
def test_every_step_is_slide(score: str) -> None:
    pool = {"decoding_window_size": 6, "decoding_recent_size": 3, "decoding_score": score}
    often = Compression("ALLKV", "periodic", period=1, **pool, **SCORES[score])
    slide = Compression("ALLKV", "slide", **pool, **SCORES[score])
    for ours, theirs in zip(kept(often), kept(slide), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_it_takes_as_many_slots_as_it_says() -> None:
    compression = Compression("ALLKV", "periodic", **POOL, last_queries=2)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS[:1], 40)
        session.prefill()
        held = []
        for step in range(40):
            session.step(torch.tensor([step]))
            held.append(int((session.cache.layers[0].positions[0, 0] >= 0).sum()) - len(PROMPTS[0]))
    assert session.cache.plan.slots == (len(PROMPTS[0]) + 6 + 3,) * 3
    assert held[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert held[8:14] == [6, 7, 8, 6, 7, 8]


def test_rpc_keeps_its_share() -> None:
    compression = Compression("ALLKV", "rpc", period=8, keep_one_in=4, decoding_recent_size=2)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS[:1], 40)
        session.prefill()
        held = {}
        for step in range(1, 41):
            session.step(torch.tensor([step]))
            layer = session.cache.layers[0]
            mine, other = layer.positions[0].sort().values
            held[step] = int((mine >= 0).sum()) - len(PROMPTS[0])
            assert torch.equal(mine, other), "one set for all heads"
    assert [held[step] for step in (7, 8, 15, 16, 24, 32, 40)] == [7, 4, 11, 6, 8, 10, 12]


def test_scores_are_asked_only_where_tokens_leave() -> None:
    asked = []

    class Watched(SnapKVDecode):
        def worth(self, slots: Slots) -> Tensor:
            asked.append(int(slots.position[0]) - len(PROMPTS[0]) + 1)
            return super().worth(slots)

    run(Compression("ALLKV", "periodic", decoding_score=Watched, **POOL), PROMPTS[:1])
    assert sorted(set(asked)) == [9, 12]


@every_score
def test_a_row_that_came_later_is_cut_when_its_own_time_comes(score: str) -> None:
    compression = Compression("ALLKV", "periodic", decoding_score=score, **POOL, **SCORES[score])
    with patch(tiny_model("gqa")) as model:
        alone = []
        for prompt in PROMPTS[:2]:
            session = Session(model, compression, [prompt], 30)
            session.prefill()
            alone.append([session.step(torch.tensor([step]))[0] for step in range(20)])
        session = Session(model, compression, PROMPTS[:2], 30)
        session.admit(0, 0)
        for step in range(20):
            if step == 4:
                session.admit(1, 1)
            logits = session.step(torch.tensor([step, max(step - 4, 0)]))
            torch.testing.assert_close(logits[0], alone[0][step], rtol=1e-4, atol=1e-4)
            if step >= 4:
                torch.testing.assert_close(logits[1], alone[1][step - 4], rtol=1e-4, atol=1e-4)


def test_redundancy_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.randn(2, 2, 70, 8, generator=torch.Generator().manual_seed(0))
    ranks = torch.stack([torch.randperm(70) for _ in range(4)]).view(2, 2, 70).int() - 5
    slots = SimpleNamespace(keys=keys, ranks=ranks.clamp(min=-1))
    whole = rkv.redundancy(slots)
    monkeypatch.setattr(rkv, "_ROWS_PER_BLOCK", 9)
    torch.testing.assert_close(rkv.redundancy(slots), whole)
    assert (whole[slots.ranks < 0] == 0).all()
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 0}, "period is 0"),
        ({"last_queries": 0}, "last_queries is 0"),
        ({"decoding_score": "rkv", "attention_weight": 2.0}, "attention_weight is 2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_settings_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("ALLKV", "periodic", **options)


def test_rpc_refuses_no_period() -> None:
    with pytest.raises(ScopeError, match="keep_one_in is 0"):
        Compression("ALLKV", "rpc", keep_one_in=0)
