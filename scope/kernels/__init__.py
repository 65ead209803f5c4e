"""Attention of one decode step over the slots of a cache, and column sums of a prompt's."""

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


def shared_memory(device: torch.device) -> int:
    """Bytes of fast memory that one program can have."""
    if device.type != "cuda":
        return 2**20  # the interpreter knows no limit
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
