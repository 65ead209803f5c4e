"""A tiny random model with a tokenizer, on disk, and a data file for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scope.harness.cli import main
from tests.harness.running import Run, arguments_of

WORDS = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(125))]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny-Llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Five prompts of 42 to 50 words."""
    path = tmp_path / "gsm8k_2.jsonl"
    generator = torch.Generator().manual_seed(1)
    with path.open("w") as file:
        for row in range(5):
            numbers = torch.randint(0, 125, (40 + 2 * row,), generator=generator).tolist()
            words = " ".join(f"w{number}" for number in numbers)
            prompt = f"Question_1:\n{words}\nQuestion_2:"
            row = {"prompt": prompt, "questions": ["a", "b"], "answers": ["#### 1", "#### 2"]}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def run(model_folder: Path, data_file: Path, tmp_path: Path) -> Run:
    """Runs with small budgets, and options that come last; returns the data set's folder."""

    def call(save_dir: str = "out", **options: Any) -> Path:
        arguments = arguments_of(model_folder, data_file, tmp_path / save_dir, **options)
        assert main(arguments) == 0
        [found] = (tmp_path / save_dir).glob("tiny-llama_*")
        return found / "gsm8k"

    return call
