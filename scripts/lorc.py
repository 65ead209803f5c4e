"""Brings a model's projections of keys and values to low rank (LoRC), as `low_rank` takes them.

    python -m scripts.lorc --model_path scope/recall/model --least 0.6 --most 0.9 --out lorc
    python run_longgenbench.py --model_path lorc --low_rank lorc/lorc.safetensors ...

The folder has the model with these projections, and a file of their factors. With it the prompt
pool holds latents, of which the factors make the very keys and values of this model. The original
model takes the file too: then prompts are read as without, and only what is held is of low rank.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from scope.attention.support import attention_modules
from scope.errors import ScopeError
from scope.harness.models import load_model, load_tokenizer
from scope.methods.lorc import Factors, factorised, ranks
from scope.methods.prompt import Prompt
from scripts.looking import add_model_options, seen

FILE = "lorc.safetensors"
_PROBED = 32  # tokens
# Between keys that the model has made and those of the factors, in 16 bits.
_TOLERANCE = 0.02


@torch.no_grad()
def factorise(
    model: PreTrainedModel, least: float, most: float
) -> tuple[dict[str, Tensor], list[int]]:
    """Replace the projections of a model in place; their factors by name, and each layer's rank.

    Raises:
        ScopeError: for a model that has no such projections of its own.
    """
    modules: list[Any] = attention_modules(model)
    for module in modules:
        if not hasattr(module, "k_proj") or hasattr(module, "k_norm"):
            raise ScopeError(
                f"{type(module).__name__} is not supported: its keys and values are more, or less, "
                "than a projection each"
            )
    weights = [[getattr(m, name).weight.float() for m in modules] for name in ("k_proj", "v_proj")]
    chosen, found = ranks(*weights, least, most), dict[str, Tensor]()
    for layer, (module, rank) in enumerate(zip(modules, chosen, strict=True)):
        for name, linear in (("key", module.k_proj), ("value", module.v_proj)):
            down, up = factorised(linear.weight.float(), rank)
            linear.weight.copy_(up @ down)
            bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(len(up))
            parts = {"down": down.to(linear.weight.dtype), "up": up.to(linear.weight.dtype)}
            for part, tensor in {**parts, "bias": bias.clone()}.items():
                found[f"{name}_{part}.{layer}"] = tensor.cpu()
    return found, chosen


def check(model: PreTrainedModel, path: Path) -> None:
    """See that the factors make the keys and values of a model that has their projections.

    Raises:
        ScopeError: where the model does more to them than to project and to turn.
    """
    config = model.config.get_text_config()

    def error_of(prompt: Prompt) -> Tensor:
        """The larger of a layer's, of keys and of values."""
        factors = Factors.load(str(path), config, prompt.layer).like(prompt.keys)
        keys, values = factors.latents(prompt.hidden)
        positions = torch.arange(prompt.length, device=keys.device)
        made = factors.keys(keys, positions), factors.values(values)
        pairs = zip(made, (prompt.keys, prompt.values), strict=True)
        return torch.tensor(max(float((ours - own).norm() / own.norm()) for ours, own in pairs))

    text = torch.randint(config.vocab_size, (_PROBED,), generator=torch.Generator().manual_seed(0))
    [errors] = seen(model, [text.tolist()], error_of)
    worst = float(errors.max())
    if not worst < _TOLERANCE:
        raise ScopeError(
            f"{type(model).__name__} is not supported: what it does to keys or values is more than "
            f"a projection and RoPE (they differ by {worst:.0%})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.lorc",
        description="Bring a model's projections of keys and values to low rank.",
    )
    add_model_options(parser)
    parser.add_argument("--least", type=float, default=0.5, help="share of a full rank, last layer")
    parser.add_argument("--most", type=float, default=0.7, help="the same of the first layer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        if not 0 < options.least <= options.most <= 1:
            raise ScopeError(
                f"--least {options.least} and --most {options.most}: expected shares above 0, up "
                "to 1, the first no larger"
            )
        model = load_model(options.model_path, options.dtype, options.device, "sdpa")
        found, chosen = factorise(model, options.least, options.most)
        options.out.mkdir(parents=True, exist_ok=True)
        save_file(found, options.out / FILE)
        check(model, options.out / FILE)
        model.hf_quantizer = None  # what a .gguf file holds in few bits has been restored
        model.save_pretrained(options.out)
        load_tokenizer(options.model_path).save_pretrained(options.out)
    except (ScopeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: ranks {' '.join(map(str, chosen))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
