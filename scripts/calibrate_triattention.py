"""Measures the mean query of every head of a model, for the decoding score `triattention`.

    python -m scripts.calibrate_triattention --model_path scope/recall/model \\
        --data_file prompts.jsonl --max_new_tokens 352 --out calibration.safetensors

The model answers the prompts with the full cache; the queries of prompts and answers are averaged
before RoPE. Take other prompts than those that a method is measured on. The file has, for a layer
n, ``mean_query.n`` ``[H_q, D]``, E q, and ``spread.n`` ``[H_q, D/2]``, E |q_f| - |E q_f|.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression, patch
from scope.errors import ScopeError
from scope.generation.greedy import generate
from scope.generation.session import Session
from scope.harness.models import eos_token_ids, load_model
from scope.methods.prompt import Prompt
from scope.methods.rope import frequencies, turned
from scripts.looking import add_model_options, add_prompt_options, count, read_prompts, seen


def lengths_of_pairs(queries: Tensor) -> Tensor:
    """``[..., D/2]`` of ``[..., D]``."""
    return torch.stack(queries.chunk(2, dim=-1)).norm(dim=0)


def calibrate(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Means over all tokens of the texts, as the file has them."""
    config = model.config.get_text_config()

    def sums_of(prompt: Prompt) -> Tensor:
        """``[H_q, D + D/2]`` of queries before RoPE and of the lengths of their pairs."""
        paces = frequencies(config, prompt.layer).to(prompt.queries.device)
        angles = torch.arange(prompt.length, device=paces.device)[:, None] * paces
        queries = turned(prompt.queries.float(), angles.cos(), -angles.sin())
        return torch.cat([queries, lengths_of_pairs(queries)], dim=-1).double().sum(dim=1)

    sums = seen(model, texts, sums_of)
    means = (torch.stack(sums).sum(dim=0) / sum(map(len, texts))).float()
    head_dim = 2 * len(frequencies(config, 0))
    queries, lengths = means.split([head_dim, head_dim // 2], dim=-1)
    spread = lengths - lengths_of_pairs(queries)
    return {
        name: mean.contiguous()
        for layer in range(len(means))
        for name, mean in (
            (f"mean_query.{layer}", queries[layer]),
            (f"spread.{layer}", spread[layer]),
        )
    }


def answered(
    model: PreTrainedModel, prompts: Sequence[list[int]], max_new_tokens: int, ends: set[int]
) -> list[list[int]]:
    """Each prompt with what the model writes after it."""
    with patch(model):
        texts = []
        for prompt in prompts:
            session = Session(model, Compression(), [prompt], max_new_tokens)
            [(_, generation)] = generate(session, max_new_tokens, ends)
            texts.append(prompt + generation.tokens)
    return texts


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.calibrate_triattention",
        description="Measure a model's mean queries for the decoding score triattention.",
    )
    add_model_options(parser)
    add_prompt_options(parser, num_prompts=8)
    parser.add_argument(
        "--max_new_tokens", type=count, default=1024, help="most tokens of an answer"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    options = parser.parse_args(arguments)
    try:
        tokenizer, prompts = read_prompts(options)
        model = load_model(options.model_path, options.dtype, options.device, "sdpa")
        ends = eos_token_ids(model, tokenizer, "model")
        texts = answered(model, prompts, options.max_new_tokens, ends)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_file(calibrate(model, texts), options.out)
    except (ScopeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {sum(map(len, texts))} tokens of {len(texts)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
