"""Compiles for an H100, on any machine, the kernels that some sessions launch: none of them runs.

The interpreter, which the other tests go through without a GPU, takes more than a compiler does.
"""

from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from scope import Compression, patch
from scope.attention import joined as joined_module
from scope.cache import writing
from scope.generation.fused import fused_step
from scope.generation.session import Session
from scope.registry import SCORES
from tests.core.tiny import VOCABULARY, backend, random_tokens, tiny_heads, tiny_model

# Counts of so many rows are 16 bytes, so that those of every layer lie on a border of 16: Triton
# compiles anew where some do not.
ROWS = 4
_W = {"decoding_window_size": 8, "decoding_recent_size": 2}
_C = {"max_capacity_prompt": 32, "window_size": 8}
NARROW = [
    *(
        Compression("ALLKV", "slide", **_W, decoding_score=name)
        for name, score in SCORES.items()
        if score.kernel is not None
    ),
    Compression("ALLKV", "slide", **_W, share_heads=True),
    Compression("KVCompress", "slide", **_C, **_W, protected_window=10, block_size=4),
    *(
        Compression("ALLKV", "periodic", **_W, period=4, decoding_score=name)
        for name in ("snapkv_decode", "morphkv", "rkv", "expected")
    ),
    Compression("H2O", "rpc", **_C, decoding_recent_size=2),
    Compression("LoCoCo", "lococo", **_C, **_W, period=4, heads=tiny_heads()),
    Compression("ALLKV", "refreshkv", working_set=20, stride=3),
    *(
        Compression("ALLKV", "slide", **_W, prompt_bits=bits, rounding_group=16)
        for bits in (8, 3, 2)
    ),
    Compression("ALLKV", "slide", **_W, decode_bits=8),
    Compression("ALLKV", "slide", **_W, prompt_bits=4, rounding_group=16, decode_bits=8),
    Compression("ALLKV", "slide", **_W, pruned_channels=0.4),
    Compression("ALLKV", "slide", **_W, merged_layers=1.0, whole_recent=4),
]
WIDE = [Compression(name, "slide", **_C, **_W) for name in ("H2O", "SnapKV", "KVMerger")]


class _H100:
    """What Triton asks of a driver before it launches anything."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def wide_model() -> Qwen3ForCausalLM:
    """Wide enough for the kernels of linear layers."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    return Qwen3ForCausalLM(config).to(torch.bfloat16).eval()


def run(model: PreTrainedModel, compression: Compression) -> None:
    """Go through a prompt and some steps on a CPU, where kernels are compiled instead of run."""
    with patch(model), torch.inference_mode():
        session = Session(model, compression, [random_tokens(60, seed=0)] * ROWS, 24)
        session.prefill()
        for _ in range(16):
            tokens = torch.zeros(ROWS, dtype=torch.int64)
            session.cache.begin_forward(ROWS, 1, None, tokens.device)
            fused_step(model, session.cache, tokens)


def main() -> None:
    launch: Any = JITFunction.run

    def compile_only(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        return launch(kernel, *args, **{**kwargs, "warmup": True})

    driver.set_active(_H100())
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch, "empty", torch.zeros),  # what no kernel writes must be numbers
        mock.patch.object(torch, "empty_like", torch.zeros_like),
        mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros),
        mock.patch.object(joined_module, "has_kernels_for", return_value=True),
        mock.patch.object(writing, "backend_for", return_value=backend(True)),
        mock.patch.object(Session, "_reads_fused", return_value=True),
    ):
        narrow = tiny_model("qwen2", 0, 2, dtype=torch.bfloat16)
        for model, compressions in ((narrow, NARROW), (wide_model(), WIDE)):
            for compression in compressions:
                print(compression, flush=True)
                run(model, compression)


if __name__ == "__main__":
    main()
