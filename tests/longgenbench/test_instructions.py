"""The instruction is data, and the three ways of joining it to a prompt say what they promise."""

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from scope.errors import ScopeError
from scope.longgenbench import instructions
from scope.tasks.registry import TASKS

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def test_own_instructions_cover_all_data_sets() -> None:
    assert set(instructions.load()) == set(TASKS)


def test_an_instruction_file_replaces_the_wording(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"gsm8k": "Calculate."}')
    assert instructions.load(file) == {"gsm8k": "Calculate."}


@pytest.mark.parametrize("content", ["{", "[]", '{"gsm8k": 3}', None])
def test_a_bad_instruction_file_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "bad.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ScopeError, match=r"^--instruction_file .*bad\.json: [^\n]+$"):
        instructions.load(file)


def test_plain_and_chat() -> None:
    assert instructions.render_prompt("Do.", "Q") == "Do.\n\nQ"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")),
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    text = instructions.render_prompt("Do.", "Q", "chat", tokenizer=tokenizer)
    assert text == "<user>Do.\n\nQ<assistant>"
    with pytest.raises(ScopeError, match="no chat template"):
        instructions.render_prompt("Do.", "Q", "chat")
    with pytest.raises(ScopeError, match="unknown prompt style 'chatty'"):
        instructions.render_prompt("Do.", "Q", "chatty")


@pytest.mark.parametrize(
    ("model_path", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", "<<SYS>>\n Do. \n<</SYS>>\n\nQ"),
        ("llama2-7b", "[INST] <<SYS>>\n Do. \n<</SYS>>\n\nQ [/INST]"),
        ("meta-llama/Llama-2-7b", "Do.\n\nQ"),
        ("mistral-7b", "Do.\n\nQ"),
    ],
)
def test_upstream_goes_by_the_model_name(model_path: str, expected: str) -> None:
    assert instructions.render_prompt("Do.", "Q", "upstream", model_path=model_path) == expected


def test_upstream_equals_the_published_prompts() -> None:
    published = sorted(REFERENCE.glob("results/*/*/*/*/*.json.gz"))
    if not published:
        pytest.skip(f"no published results in {REFERENCE}")
    wording = instructions.load(REFERENCE / "prompts" / "instructions.json")
    for file in published:
        dataset = file.parent.name
        k = (40 if dataset == "csqa" else 30) * (2 if "_8K" in str(file) else 1)
        with gzip.open(REFERENCE / "longgenbench" / f"{dataset}_{k}.jsonl.gz", "rt") as lines:
            prompts = {json.loads(line)["prompt"] for line in lines}
        rendered = {
            instructions.render_prompt(
                wording[dataset], prompt, "upstream", model_path="Llama-3.1-8B-Instruct"
            )
            for prompt in prompts
        }
        with gzip.open(file, "rt") as lines:
            assert {json.loads(line)["prompt"] for line in lines} <= rendered
