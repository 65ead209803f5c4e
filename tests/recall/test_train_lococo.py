"""Training of LoCoCo's heads: what it optimizes is what the cache does, and it can be stopped."""

import csv
from pathlib import Path

import pytest
import torch

from baselines.lococo_heads import Heads
from scope import Compression, SlotCache, patch
from scripts import train_lococo
from scripts.train_lococo import Recipe, Texts, Training, cut_down, losses, train
from tests.core.tiny import random_tokens, tiny_heads, tiny_model

RECIPE = Recipe(
    capacity=20, slots=4, window=4, segment=16, length=48, kernel=3, steps=50, batch=2, rate=0.01
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def texts() -> Texts:
    return Texts(RECIPE, torch.tensor(random_tokens(400, seed=0)).numpy())


def model() -> torch.nn.Module:
    return tiny_model("gqa", attn_implementation="eager")


def test_with_everything_held_segments_change_nothing() -> None:
    tokens = texts().batch(0)
    cuts = texts().cuts(tokens.shape[1])
    with torch.no_grad():
        given = list(losses(model(), None, tokens, cuts, RECIPE))
        whole = model()(input_ids=tokens).logits
    for cut, loss in zip(cuts[1:], given, strict=True):
        targets = tokens[:, cut.start + 1 : cut.stop + 1]
        logits = whole[:, cut.start : cut.start + targets.shape[1]]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(loss, expected)


def test_the_first_fold_is_the_compressors() -> None:
    """Keys and values of a prompt, from the cache and from the training loop."""
    prompt = torch.tensor([random_tokens(40, seed=40)])
    heads = Heads.load(tiny_heads()).on(torch.device("cpu"))
    options = {"max_capacity_prompt": 20, "window_size": 4, "heads": tiny_heads()}
    with torch.no_grad(), patch(model()) as patched:
        slots = SlotCache(patched.config, Compression("LoCoCo", **options), 4)
        patched(input_ids=prompt, past_key_values=slots)
    with torch.no_grad():
        output = model()(input_ids=prompt, use_cache=True, output_attentions=True)
    for index, layer in enumerate(output.past_key_values.layers):
        received = output.attentions[index].sum(dim=2).view(1, 2, 2, 40).mean(dim=2)
        (keys, values), _ = cut_down(heads, index, layer.keys, layer.values, received, RECIPE)
        held = slots.layers[index]
        torch.testing.assert_close(keys, held.keys[:, :, :20], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, held.values[:, :, :20], rtol=1e-4, atol=1e-4)


def test_only_heads_learn_and_the_loss_falls(tmp_path: Path) -> None:
    one = model()
    before = {name: weight.clone() for name, weight in one.named_parameters()}
    trained = train(RECIPE, one, texts(), tmp_path)
    assert all(torch.equal(before[name], weight) for name, weight in one.named_parameters())
    untrained = Training(RECIPE, one, texts()).untrained
    assert not torch.equal(trained.weight, untrained.weight)
    assert not torch.equal(trained.gate, untrained.gate)
    with (tmp_path / "evaluation.csv").open() as stream:
        loss = {row["held"]: float(row["loss"]) for row in csv.DictReader(stream)}
    assert loss["trained heads"] < loss["untrained heads"]
    saved = Heads.load(str(tmp_path / "heads.safetensors"))
    torch.testing.assert_close(saved.weight.float(), trained.weight.detach(), rtol=1e-2, atol=1e-3)


def test_training_goes_on_exactly_where_it_was_stopped(tmp_path: Path) -> None:
    whole = train(RECIPE, model(), texts(), tmp_path / "whole")
    stopped = Training(RECIPE, model(), texts())
    stopped.run_interval()
    (tmp_path / "parts").mkdir()
    stopped.save(tmp_path / "parts" / "checkpoint.pt")
    resumed = train(RECIPE, model(), texts(), tmp_path / "parts")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.gate, resumed.gate)
    curves = [(tmp_path / name / "loss_curve.csv").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slots=98"], "slots 98 and window 8 do not fit in capacity 98; make it larger"),
        (["--kernel=4"], "kernel must be odd, not 4"),
        (["--batch=0"], "batch must be at least 1, not 0"),
        (["--rate=0"], "rate must be positive, not 0.0"),
        (["--model_path=x"], "--text is missing: the recall task is for the recall model"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_lococo.main([*flags, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()
