"""Tiny random models with peaked attention, and prompts for them."""

from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel

from baselines.lococo_heads import Heads
from scope import Compression
from scope.kernels import Backend, reference
from scope.registry import COMPRESSORS, STRATEGIES

VOCABULARY = 128
SLIDING_WINDOW = 12
# Every compressor, every strategy, and of the other pairs those that are meant for one another or
# whose counts meet: budgets that differ from layer to layer, prompts that are merged or never cut.
# In all of them the heads of a layer hold equally many.
PAIRS = [
    *((name, "slide") for name in COMPRESSORS if name != "KVCompress"),
    *(("H2O", strategy) for strategy in STRATEGIES if strategy != "slide"),
    ("ALLKV", "None"),
    ("ALLKV", "refreshkv"),
    ("ALLKV", "rpc"),
    ("SnapKV", "adaptive"),
    ("PyramidKV", "discontinuous"),
    ("PyramidKV", "refreshkv"),
    ("ZigZagKV", "None"),
    ("ZigZagKV", "h2o"),
    ("ZigZagKV", "lococo"),
    ("PyramidInfer", "pyramidinfer"),
    ("StreamingLLM", "slm"),
    ("LoCoCo", "lococo"),
    ("KVMerger", "h2o"),
    ("KVMerger", "periodic"),
]

_FOLDER = TemporaryDirectory()
_SLIDING = {"sliding_window": SLIDING_WINDOW}
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Configuration and class by the name that both begin with, and what is special.
_ARCHITECTURES = {
    "mha": ("Llama", {"num_key_value_heads": 4}),
    "gqa": ("Llama", {}),
    "mistral": ("Mistral", _SLIDING),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3-mixed": ("Qwen3", {**_MIXED, "use_sliding_window": True}),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "num_experts": 4}),
    "phi3": ("Phi3", _SLIDING),
    "gemma2": ("Gemma2", {**_MIXED, "attn_logit_softcapping": None}),
    "gemma3": ("Gemma3", _MIXED),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "olmo2": ("Olmo2", {}),
    "glm4": ("Glm4", {}),
    "granite": ("Granite", {"attention_multiplier": 0.3}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "gpt-neox": ("GPTNeoX", {}),
}
LLAMAS = ["mha", "gqa", "mistral", "qwen2"]
OTHER_FAMILIES = [name for name in _ARCHITECTURES if name not in LLAMAS]


def tiny_model(
    name: str,
    seed: int = 0,
    num_layers: int = 3,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A random model: ``mha`` and ``gqa`` are Llamas, ``mistral`` has a sliding window."""
    family, extra = _ARCHITECTURES[name]
    config_class = getattr(
        transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    )
    model_class = getattr(transformers, f"{family}ForCausalLM")
    settings = {"num_key_value_heads": 2, **extra}
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][:num_layers]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        head_dim=16,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **settings,
    )
    torch.manual_seed(seed)
    model = model_class._from_config(config, attn_implementation=attn_implementation)
    for name, vector in model.named_parameters():
        if vector.dim() == 1:  # gains begin at 1 and biases at 0, where mistakes do not show
            torch.nn.init.normal_(vector, mean="norm" in name, std=0.5)
    return model.to(dtype).eval()


@cache
def tiny_heads(slots: int = 4, gate: float = 0.5) -> str:
    """A file of random heads of LoCoCo for these models."""
    heads = Heads.random(layers=4, slots=slots, head_dim=16, kernel=3, seed=slots)
    heads.weight.mul_(0.1)  # no attention of all or nothing, where mistakes would not show
    heads.bias.normal_(generator=torch.Generator().manual_seed(slots))
    heads.gate.fill_(gate)
    path = Path(_FOLDER.name) / f"{slots}-{gate}.safetensors"
    heads.save(path)
    return str(path)


def compression_of(
    method: str,
    strategy: str,
    capacity: int = 10,
    window: int = 3,
    pool: int = 6,
    recent: int = 2,
    **more: Any,
) -> Compression:
    """Small budgets for any pair, C, w, W and R, as far as the pair reads them."""
    sizes = {
        "max_capacity_prompt": capacity,
        "window_size": window,
        "decoding_window_size": pool,
        "decoding_recent_size": recent,
        "period": 4,
        "heads": tiny_heads(),
        "protected_window": 4,
        "block_size": 2,
        "working_set": 5,
        "stride": 3,
    }
    return Compression.from_shared(method, strategy, **(sizes | more))


@cache
def tiny_factors(rank: int = 6) -> str:
    """A file of random low-rank factors for ``gqa``: latents that have nothing to do with it."""
    random = torch.Generator().manual_seed(rank)
    shapes = {"down": (rank, 64), "up": (32, rank), "bias": (32,)}
    path = Path(_FOLDER.name) / f"factors-{rank}.safetensors"
    save_file(
        {
            f"{name}_{part}.{layer}": torch.randn(shape, generator=random) / rank
            for layer in range(3)
            for name in ("key", "value")
            for part, shape in shapes.items()
        },
        path,
    )
    return str(path)


def backend(kernels: bool) -> Backend:
    """Triton's, which a CPU interprets, or plain torch."""
    if not kernels:
        return reference
    pytest.importorskip("triton", reason="the kernels need Triton")
    return import_module("scope.kernels.triton.backend")


def random_tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of a batch."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }
