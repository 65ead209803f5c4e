"""LoCoCo in the extreme, and what it refuses; tests/core/test_reference.py has its equations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scope import Compression, ScopeError, patch
from scope.generation.session import Session
from scope.kernels import folding
from tests.core.test_open_house import DEVICE, POOL, PROMPT, PROMPTS, STEPS, run
from tests.core.tiny import tiny_heads, tiny_model
from tests.examples.uneven import Uneven


@pytest.mark.parametrize("budget", ["uniform", "pyramid", Uneven])
def test_without_a_share_of_the_mixture_it_is_h2o(budget: Any) -> None:
    closed, held = run(
        Compression("LoCoCo", "slide", budget=budget, heads=tiny_heads(gate=0.0), **PROMPT, **POOL),
        PROMPTS,
    )
    h2o, expected = run(Compression("H2O", "slide", budget=budget, **PROMPT, **POOL), PROMPTS)
    assert torch.equal(closed, h2o)
    for after, expected_after in zip(held, expected, strict=True):
        assert all(map(torch.equal, after, expected_after))


def test_folding_every_step_without_a_share_of_the_mixture_is_h2o() -> None:
    heads = tiny_heads(gate=0.0)
    closed, held = run(
        Compression("H2O", "lococo", period=1, heads=heads, **PROMPT, **POOL), PROMPTS
    )
    h2o, expected = run(Compression("H2O", "h2o", **PROMPT, **POOL), PROMPTS)
    torch.testing.assert_close(closed, h2o)
    for after, expected_after in zip(held, expected, strict=True):
        assert all(map(torch.equal, after, expected_after))


def test_more_than_the_window_cannot_be_folded_at_once() -> None:
    with pytest.raises(ScopeError, match="at most decoding_window_size 6"):
        Compression("ALLKV", "lococo", period=7, **POOL)


@pytest.mark.parametrize("share_heads", [False, True])
def test_merging_changes_the_lightest_and_nothing_else(share_heads: bool) -> None:
    states = []
    for gate in (0.0, 0.5):
        compression = Compression(
            "LoCoCo", heads=tiny_heads(gate=gate), share_heads=share_heads, **PROMPT
        )
        with patch(tiny_model("gqa")) as model:
            session = Session(model, compression, PROMPTS[:1], STEPS)
            session.prefill()
            first = session.cache.layers[0]
            states.append(torch.cat([first.keys, first.values], dim=-1)[0, :, :20].clone())
    changed = (states[0] != states[1]).any(dim=-1)
    assert changed.sum(dim=-1).tolist() == [4, 4]
    assert not changed[:, -4:].any(), "the window stays"
    assert share_heads == torch.equal(changed[0], changed[1])


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what plain torch folds; kernels fold there")
@pytest.mark.parametrize("share_heads", [False, True])
def test_all_that_leaves_is_folded(share_heads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(keys: Any, values: Any, rest: Any, pivots: Any, *more: Any) -> Any:
        counts.append((rest & ~pivots).sum(dim=-1))
        return own(keys, values, rest, pivots, *more)

    own = folding.folded
    monkeypatch.setattr(folding, "folded", counted)
    options = {"period": 4, "heads": tiny_heads(), "share_heads": share_heads}
    run(Compression("ALLKV", "lococo", **options, **POOL), PROMPTS)
    assert len(counts) > 1
    assert all((count == 4).all() for count in counts)


def test_a_head_that_drops_nothing_is_not_merged() -> None:
    whole = Compression("LoCoCo", budget=AlmostWhole, heads=tiny_heads(), **PROMPT)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, whole, PROMPTS[:1], STEPS)
        session.prefill()
        full = Session(model, Compression(), PROMPTS[:1], STEPS)
        full.prefill()
        ours, theirs = session.cache.layers[0], full.cache.layers[0]
        assert torch.equal(ours.keys[0, 0, :40], theirs.keys[0, 0, :40])
        assert (ours.positions[0] >= 0).sum(dim=-1).tolist() == [40, 39]


class AlmostWhole(Uneven):
    """The first head of a layer drops nothing, the second one token."""

    name = "almost whole"

    def total(self, length: int, num_layers: int) -> None:
        return None

    def share_out(self, seen: torch.Tensor, length: int) -> Any:
        return torch.tensor([[length, length - 1]] * len(seen)).numpy()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (None, "no such file; train some"),
        ({"gate": torch.zeros(3)}, "not a file of trained heads"),
    ],
    ids=["nothing there", "another file"],
)
def test_heads_that_are_none_are_refused(
    tensors: dict[str, torch.Tensor] | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "heads.safetensors"
    if tensors:
        save_file(tensors, path)
    with pytest.raises(ScopeError, match=words):
        run(Compression("LoCoCo", heads=str(path), **PROMPT), PROMPTS[:1])


def test_heads_of_another_model_are_refused() -> None:
    with pytest.raises(ScopeError, match="are for a model of 4 layers and heads of 32"):
        run(Compression("LoCoCo", **PROMPT), PROMPTS[:1])
