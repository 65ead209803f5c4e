"""What is read off a batch of prompts: how long each is, and what chance makes of it."""

from torch import Tensor

from scope.errors import ScopeError
from scope.kernels.tensors import mixed


def read_mask(batch_size: int, num_tokens: int, attention_mask: Tensor) -> tuple[Tensor, list[int]]:
    """The mask as bools, and how many tokens of each row are no padding."""
    if attention_mask.shape != (batch_size, num_tokens):
        raise ScopeError(
            f"attention_mask of a prefill has shape {tuple(attention_mask.shape)}; expected "
            f"{(batch_size, num_tokens)}"
        )
    real = attention_mask.bool()
    lengths = real.sum(dim=1).tolist()
    if bool((real[:, 1:] < real[:, :-1]).any()) or min(lengths) == 0:
        raise ScopeError("prompts must be padded on the left; set tokenizer.padding_side = 'left'")
    return real, lengths


def draws_of(positions: Tensor, real: Tensor, tokens: Tensor | None, seed: int) -> Tensor:
    """``[b]`` int64, a 32-bit number of each prompt and a seed."""
    named = positions if tokens is None else mixed(positions) + tokens.to(positions.device)
    draws = (mixed(named) * real).sum(dim=1) & 0xFFFFFFFF
    return mixed(draws + seed)
