"""One prompt, and what a model writes after it with the full cache."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.attention.patch import patch
from scope.compression import Compression
from scope.generation.greedy import generate
from scope.generation.session import Session
from scope.harness.models import eos_token_ids, load_model, load_tokenizer
from scope.recall.build import build_rows
from scope.recall.task import RecallTask

RECALL_MODEL = Path(__file__).parents[1] / "recall" / "model"


@dataclass(frozen=True)
class Example:
    """A loaded model with a prompt and its own continuation, as token ids."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: list[int]
    text: list[int]


def load_example(
    model_path: str | Path = RECALL_MODEL,
    prompt: str | None = None,
    max_new_tokens: int = 352,
    device: str = "cpu",
    dtype: str = "float32",
) -> Example:
    """Load a model whose attention weights can be seen, and let it continue a prompt.

    Args:
        model_path: hub id, local folder or .gguf file.
        prompt: a text; None takes a recall prompt of 32 records.
        max_new_tokens: most tokens to generate.
        device: torch device.
        dtype: name of a torch dtype.
    """
    model = load_model(str(model_path), dtype, device, "eager")
    tokenizer = load_tokenizer(str(model_path))
    if prompt is None:
        prompt = build_rows(RecallTask(), seed=0, num_prompts=1)[0]["prompt"]
    tokens = tokenizer(prompt)["input_ids"]
    with patch(model):
        session = Session(model, Compression(), [tokens], max_new_tokens)
        end_tokens = eos_token_ids(model, tokenizer, "model")
        [(_, generation)] = generate(session, max_new_tokens, end_tokens)
    return Example(model, tokenizer, tokens, generation.tokens)
