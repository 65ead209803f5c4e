"""The data file, the tokenizer that reads it, and the scorer that reads the answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from scope.errors import ScopeError
from scope.recall.build import build_rows, main
from scope.recall.scoring import score
from scope.recall.task import RecallTask
from scope.recall.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
TASK = RecallTask(records=12)
ROW = build_rows(TASK, seed=1, num_prompts=1)[0]
ANSWERS = [
    "K63 falcon 7 NONE 7 f a",
    "K0 planet 4 X63 1 p l",
    "K1 guitar 9 X63 6 g u",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_text_gives_the_models_own_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts, answers = TASK.sample(np.random.default_rng(1), 1)
    assert tokenizer(ROW["prompt"]).input_ids == prompts[0].tolist()
    generated = [*answers[0].ravel().tolist(), tokenizer.eos_token_id]
    text = tokenizer.decode(generated, skip_special_tokens=True)
    assert text.split() == " ".join(ROW["answers"]).split()
    assert tokenizer(text, add_special_tokens=False).input_ids == generated[:-1]


def test_unknown_words_do_not_stop_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("K1 zeppelin").input_ids[-1] == tokenizer.unk_token_id


def test_questions_are_the_beginnings_of_the_answers() -> None:
    assert len(ROW["questions"]) == len(ROW["answers"]) == 12
    for question, answer in zip(ROW["questions"], ROW["answers"], strict=True):
        assert answer.startswith(question + " ")
        assert question in ROW["prompt"]


def test_command_writes_json_lines(tmp_path: Path) -> None:
    out = tmp_path / "new" / "recall.jsonl"
    sizes = {"--K": 12, "--seed": 1, "--num_prompts": 3, "--filler": 6, "--hubs": 4, "--out": out}
    assert main([str(part) for option in sizes.items() for part in option]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == build_rows(TASK, seed=1, num_prompts=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--K", "65"], "error: recall records must be 1 to 64, not 65\n"),
        (["--seed", "-1"], "error: the seed must not be negative, not -1\n"),
        (["--num_prompts", "0"], "error: the number of prompts must be at least 1, not 0\n"),
    ],
)
def test_command_refuses_bad_input_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recall.jsonl"
    assert main([*arguments, "--out", str(out)]) == 2
    assert capsys.readouterr().err == message
    assert not out.exists()


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ScopeError, match="seed"):
        build_rows(TASK, seed=-1, num_prompts=1)


@pytest.mark.parametrize(
    ("pred", "right"),
    [
        ("falcon 7 NONE 7 f a K0 planet 4 X63 1 p l K1 guitar 9 X63 6 g u", [1, 1, 1]),
        ("K63 falcon 7 NONE 7 f a K0 planet 4 X63 1 p l K1 guitar 9 X63 6 g u", [1, 1, 1]),
        ("falcon 7 NONE 7 f a K1 guitar 9 X63 6 g u K0 planet 4 X63 1 p l", [1, 1, 1]),
        ("falcon 7 NONE 0 f a K0 planet 4 X63 1 p l", [0, 1, 0]),  # K1 is missing
        ("spider 3 X9 7 s p K0 planet 4 X63 1", [1, 1, 0]),  # nothing counts but the sum
        ("falcon 7 NONE 7 f a K0 planet 4 X63", [1, 0, 0]),  # cut off before the sum
        ("falcon 7 NONE 7 f a K0 planet 4 X63 2 p l K0 planet 4 X63 1 p l", [1, 0, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_score_goes_by_the_printed_index(pred: str, right: list[int]) -> None:
    assert score(pred, ANSWERS) == [bool(flag) for flag in right]


def test_gold_answers_score_full_marks() -> None:
    text = " ".join(ROW["answers"])
    assert all(score(text, ROW["answers"]))
    assert all(score(text.split(maxsplit=1)[1], ROW["answers"]))


def test_the_demo_file_is_what_its_command_builds() -> None:
    lines = (ROOT / "scope/recall/recall_32.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == build_rows(RecallTask(), 7, 32)
