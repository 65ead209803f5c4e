"""A reduced training: a few steps of a tiny model, its curve, its checkpoints and its folder."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from scope.errors import ScopeError
from scope.recall.llama import LlamaSize, build_model
from scope.recall.task import SUM, RecallTask
from scope.recall.vocabulary import EOS, TOKEN_ID, VOCABULARY
from scripts import train_recall
from scripts.train_recall import Progress, Recipe, Training, draw_batch, evaluate, train

SIZE = LlamaSize(layers=2, hidden=16, heads=2, kv_heads=1, head_dim=8, ffn=32)
RECIPE = Recipe(records=5, lookup_steps=25, filler_steps=25, decay_steps=25, tokens=256)
FLAGS = [
    *("--layers=2", "--hidden=16", "--heads=2", "--kv_heads=1", "--head_dim=8", "--ffn=32"),
    *("--records=5", "--lookup_steps=25", "--filler_steps=25", "--decay_steps=25", "--tokens=256"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(RECIPE, SIZE, folder, "cpu")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_folder_is_a_plain_llama_with_its_tokenizer_and_curve(trained: Path) -> None:
    assert type(AutoModelForCausalLM.from_pretrained(trained)) is LlamaForCausalLM
    assert len(AutoTokenizer.from_pretrained(trained)) == len(VOCABULARY)
    with (trained / "loss_curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == train_recall.CURVE_COLUMNS
    assert [row["step"] for row in rows] == ["25", "50", "75"]
    assert [row["letters"] == "" for row in rows] == [True, False, False]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert not (trained / "checkpoint.pt").exists()


def test_training_goes_on_exactly_where_it_was_stopped(trained: Path, tmp_path: Path) -> None:
    stopped = Training(RECIPE, SIZE, "cpu")
    stopped.run_interval()
    stopped.save(tmp_path / "checkpoint.pt")
    train(RECIPE, SIZE, tmp_path, "cpu")
    whole = weights(trained)
    assert all(torch.equal(weight, whole[name]) for name, weight in weights(tmp_path).items())
    assert (tmp_path / "loss_curve.csv").read_bytes() == (trained / "loss_curve.csv").read_bytes()


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    Training(RECIPE, SIZE, "cpu").save(tmp_path / "checkpoint.pt")
    other = Recipe(**vars(RECIPE) | {"seed": 1})
    with pytest.raises(ScopeError, match=r"was made with seed 0, not 1: give the same settings"):
        train(other, SIZE, tmp_path, "cpu")


def test_a_finished_model_is_not_overwritten(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_recall.main([*FLAGS, "--out", str(trained)]) == 2
    assert capsys.readouterr().err == (
        f"error: {trained} has a trained model: give another --out, or remove that one\n"
    )


def fake_accuracy(training: Training, copies: float, sums: float) -> None:
    """Make ``training`` learn nothing and report these accuracies."""

    def learn(batch: train_recall.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        right = torch.full((batch.answer_fields,), copies)
        right[SUM - 1 : SUM] = sums
        return torch.tensor(0.0), right

    training._learn = learn


def test_each_help_and_phase_begins_when_the_fields_before_it_are_right() -> None:
    training = Training(Recipe(records=7), SIZE, "cpu")
    progress = training.progress
    for copies, sums, longest, copied, lookup_end in (
        (0.5, 0.5, 4, False, 5000),
        (0.9, 0.5, 6, True, 5000),
        (0.9, 0.5, 7, True, 5000),  # 6 * 3 // 2, but no more than the recipe's records
        (0.9, 1.0, 7, True, 5000),
        (1.0, 1.0, 7, True, 125),
        (1.0, 1.0, 7, True, 125),
    ):
        fake_accuracy(training, copies, sums)
        training.run_interval()
        assert (progress.longest, progress.copied, progress.lookup_end) == (
            longest,
            copied,
            lookup_end,
        )


def test_rates_rise_stay_and_fall_to_zero() -> None:
    recipe = Recipe(lookup_steps=500, filler_steps=100, decay_steps=200)
    training = Training(recipe, SIZE, "cpu")
    factors = []
    for step in range(training.steps):
        training.progress.step = step
        factors.append(training.rate_factor())
    assert factors[0] == 0.01
    assert factors[99:600] == [1.0] * 501
    assert factors[700] == 0.5
    assert 0 < factors[-1] < 0.01


def test_batches_lack_fields_in_the_lookup_phase_and_are_whole_after_it() -> None:
    lookups = [draw_batch(Recipe(), Progress(200, step, 8)) for step in range(1, 200, 5)]
    assert {batch.answer_fields for batch in lookups} == {1, 2, 3, 4, 5}
    batch = draw_batch(Recipe(), Progress(200, 201, 8))
    assert (batch.whole, batch.answer_fields) == (True, 11)


@pytest.mark.parametrize("step", [0, 1, 3, 250])
def test_batch_is_prompt_answers_and_end(step: int) -> None:
    batch = draw_batch(Recipe(), Progress(200, step, 8, copied=True))
    assert batch.tokens.shape[1] == batch.prompt_length + batch.records * batch.answer_fields
    assert batch.tokens.size <= Recipe().tokens
    assert (batch.tokens[:, -1] == TOKEN_ID[EOS]).all()
    answers = batch.tokens[:, batch.prompt_length - 1 : -1]
    keys = answers.reshape(len(answers), batch.records, batch.answer_fields)[:, :, 0]
    assert (np.diff(keys) % 64 == 1).all()
    shown = batch.tokens[:, 1 : batch.prompt_length - 2].reshape(len(answers), batch.records, -1)
    assert np.array_equal(np.sort(shown[:, :, 0]), np.sort(keys))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build_model(SIZE, seed=7).state_dict()
    torch.manual_seed(2)
    two = build_model(SIZE, seed=7).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = build_model(SIZE, seed=8).state_dict()
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_initial_weights_have_the_documented_spread() -> None:
    model = build_model(LlamaSize(), seed=0).model
    for weight, std in (
        (model.layers[0].self_attn.q_proj.weight, 64**-0.5),
        (model.layers[3].self_attn.o_proj.weight, (128 * 8) ** -0.5),
        (model.layers[3].mlp.down_proj.weight, (192 * 8) ** -0.5),
        (model.embed_tokens.weight, 64**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_an_untrained_model_scores_at_chance_or_below() -> None:
    result = evaluate(build_model(SIZE, seed=0).eval(), RecallTask(records=8), num_prompts=4)
    assert result["sums"] <= 0.3
    assert result["ended"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to train on")
def test_a_missing_cuda_device_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_recall.main(["--device=cuda", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("error: no CUDA device was found: train with --device cpu\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--records=65"], "recall records must be 1 to 64, not 65"),
        (["--records=3"], "records must be at least 4, not 3"),
        (["--tokens=100"], "tokens must be at least 483, one example, not 100"),
        (["--filler_steps=30"], "filler_steps must be a positive multiple of 25, not 30"),
        (["--rate=0"], "rate must be positive, not 0.0"),
        (["--weight_decay=-1"], "weight_decay must not be negative, not -1.0"),
        (["--seed=-1"], "the seed must not be negative, not -1"),
        (["--kv_heads=3"], "heads must be a multiple of kv_heads 3, not 4"),
        (["--layers=0"], "layers must be at least 1, not 0"),
        (["--head_dim=3"], "head_dim must be even, not 3"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_recall.main([*flags, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()
