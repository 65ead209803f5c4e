"""What the scripts share that look at a model: options that name it, and what it reads."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope import Compression, patch
from scope.budgets.whole import Whole
from scope.generation.session import Session
from scope.harness.models import load_tokenizer
from scope.harness.rows import read_rows
from scope.methods.prompt import Prompt


def add_model_options(parser: ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    parser.add_argument("--model_path", required=True, help="hub id, local folder or .gguf file")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")


def add_prompt_options(parser: ArgumentParser, num_prompts: int) -> None:
    """What it reads."""
    parser.add_argument("--data_file", type=Path, required=True, help="JSON lines with a prompt")
    parser.add_argument(
        "--num_prompts", type=count, default=num_prompts, help="first prompts that are taken"
    )


def read_prompts(options: Namespace) -> tuple[PreTrainedTokenizerBase, list[list[int]]]:
    """The model's tokenizer, and the prompts as it has them.

    Raises:
        ScopeError: as `read_rows` and `load_tokenizer`.
    """
    rows = read_rows(options.data_file)[: options.num_prompts]
    tokenizer = load_tokenizer(options.model_path)
    return tokenizer, [tokenizer(row["prompt"])["input_ids"] for row in rows]


def count(text: str) -> int:
    """The type of an option: a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"it is {text}; expected a whole number above 0")
    return int(text)


def seen(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], look: Callable[[Prompt], Tensor]
) -> list[Tensor]:
    """What is made of every layer of each text while an unpatched model reads it: ``[N, ...]``."""
    found = []

    class Observed(Whole):
        """Keeps everything, and looks at it."""

        observes = True

        def observe(self, prompt: Prompt) -> Tensor:
            return look(prompt)

        def share_out(self, seen: Tensor, length: int) -> NDArray[np.int64]:
            found.append(seen)
            return np.full(len(seen), length)

    with patch(model):
        for text in texts:
            Session(model, Compression("SnapKV", budget=Observed), [text], 1).prefill()
    return found
