"""Finds layers of a model that can do with another's keys and values, for `--share_layers`.

    python -m scripts.calibrate_kvsharer --model_path scope/recall/model \\
        --data_file prompts.jsonl --num_layers 1

KVSharer, arXiv 2410.18517, section 3. Keys and values of every layer are averaged over the texts;
of all pairs i < j the most unlike come first, by Euclidean distance, the mean of keys' and values'.
Layer j attends to layer i's from then on if the last hidden states stay like those of the whole
model: their cosine, averaged over tokens and texts, must be above T. A layer that lends its slots
keeps them, so there are no chains. Take other prompts than those that a method is measured on.

The last line is what `--share_layers` takes, the lines before it go to stderr.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from scope import Compression, SlotCache, patch
from scope.errors import ScopeError
from scope.harness.models import load_model
from scope.methods.sharing import Sharing
from scripts.looking import add_model_options, add_prompt_options, count, read_prompts, seen


def mean_states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """``[N, 2, H, L, D]`` keys and values of every layer, mean over texts of one length."""
    states = seen(model, texts, lambda prompt: torch.stack([prompt.keys, prompt.values]).float())
    return torch.stack(states).mean(dim=0)


def unlike_first(states: Tensor) -> list[tuple[int, int]]:
    """All pairs ``(i, j)`` of layers, i < j, the most unlike first."""
    pairs = list(combinations(range(len(states)), 2))
    apart = {(i, j): float((states[i] - states[j]).flatten(1).norm(dim=1).mean()) for i, j in pairs}
    return sorted(pairs, key=lambda pair: -apart[pair])


@torch.inference_mode()
def last_hidden(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], shared: Mapping[int, int]
) -> Tensor:
    """``[texts * L, hidden]`` of the last layer, where these layers attend to others' states."""
    compression = Compression(share_layers=told(shared))
    found = []
    with patch(model):
        for text in texts:
            tokens = torch.tensor([text], device=model.device)
            cache = SlotCache(model.config, compression, 1)
            output = model(input_ids=tokens, past_key_values=cache, output_hidden_states=True)
            found.append(output.hidden_states[-1][0].float())
    return torch.cat(found)


def search(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    num_layers: int,
    least_similarity: float = 0.5,
) -> Iterator[tuple[dict[int, int], float]]:
    """The layers that share so far, one more each time, and how like the whole model it is.

    Args:
        model: an unpatched one.
        texts: token ids, of one length.
        num_layers: most layers that shall have no slots of their own.
        least_similarity: T.
    """
    original = last_hidden(model, texts, {})
    shared: dict[int, int] = {}
    for source, layer in unlike_first(mean_states(model, texts)):
        if len(shared) == num_layers:
            return
        if layer in shared:
            continue
        tried = {**shared, layer: source}
        try:
            Sharing(told(tried)).owners(model.config.get_text_config())
        except ScopeError:  # a chain, or layers that see their keys otherwise
            continue
        similarity = float(cosine_similarity(last_hidden(model, texts, tried), original).mean())
        if similarity > least_similarity:
            shared = tried
            yield shared, similarity


def told(shared: Mapping[int, int]) -> str | None:
    """As `--share_layers` takes it."""
    return ",".join(f"{layer}={source}" for layer, source in sorted(shared.items())) or None


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.calibrate_kvsharer",
        description="Find layers of a model that can do with another's keys and values.",
    )
    add_model_options(parser)
    add_prompt_options(parser, num_prompts=30)
    parser.add_argument("--num_layers", type=count, required=True, help="most layers without slots")
    parser.add_argument(
        "--tokens", type=count, default=64, help="first tokens taken of each prompt"
    )
    parser.add_argument("--least_similarity", type=float, default=0.5, help="T, a cosine")
    options = parser.parse_args(arguments)
    try:
        _, prompts = read_prompts(options)
        model = load_model(options.model_path, options.dtype, options.device, "sdpa")
        texts = [prompt[: options.tokens] for prompt in prompts if len(prompt) >= options.tokens]
        if not texts:
            raise ScopeError(
                f"no prompt of {options.data_file} has {options.tokens} tokens; lower --tokens"
            )
        shared: dict[int, int] = {}
        for shared, similarity in search(
            model, texts, options.num_layers, options.least_similarity
        ):
            print(f"{told(shared)}  cosine {similarity:.4f}", file=sys.stderr)
        if len(shared) < options.num_layers:
            raise ScopeError(
                f"only {len(shared)} layers can share above a cosine of "
                f"{options.least_similarity}; lower --num_layers or --least_similarity"
            )
    except (ScopeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(told(shared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
