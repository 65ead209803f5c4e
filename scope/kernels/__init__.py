"""Decode attention over slots, column sums of a prompt's attention, and what lies around them."""

from importlib.util import find_spec

import torch
from torch import Tensor


def has_kernels_for(keys: Tensor) -> bool:
    """Whether the Triton kernels can work on keys ``[..., D]``: on a GPU, with Triton installed."""
    head_dim = keys.shape[-1]
    return (
        keys.is_cuda
        and find_spec("triton") is not None
        and keys.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and head_dim in (16, 32, 64, 128)
    )


def argmax(logits: Tensor) -> Tensor:
    """Index of the largest of each row of ``[B, n]``: ``[B]`` int64."""
    if logits.is_cuda and find_spec("triton") is not None:
        from scope.kernels import pointwise

        with torch.cuda.device_of(logits):
            return pointwise.argmax(logits)
    return logits.argmax(dim=-1)


def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one program can have."""
    if device.type != "cuda":
        return 2**20  # the interpreter knows no limit
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def processors(device: torch.device) -> int:
    """Streaming multiprocessors, each of which has such fast memory."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
