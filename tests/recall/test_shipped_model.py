"""The model in the repository does its task with the full cache, and stops by itself."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from scope.recall.task import RecallTask
from scope.recall.vocabulary import VOCABULARY
from scripts.train_recall import evaluate

FOLDER = Path(__file__).parents[2] / "scope" / "recall" / "model"


@pytest.mark.parametrize("records", [8, 32])
def test_at_least_99_of_100_sums_are_right(records: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    result = evaluate(model, RecallTask(records=records), num_prompts=16)
    assert result["sums"] >= 0.99
    assert result["ended"] == 1


def test_the_tokenizer_has_the_words_of_the_task() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == list(VOCABULARY)


def test_the_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12e6
