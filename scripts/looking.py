"""What the scripts share that look at a model: options that name it, and what it reads."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression, patch
from scope.budgets.whole import Whole
from scope.generation.session import Session
from scope.methods.prompt import Prompt


def add_model_options(parser: ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    parser.add_argument("--model_path", required=True, help="hub id, local folder or .gguf file")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")


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
