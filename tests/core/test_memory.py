"""What a cache costs, and that it never costs more."""

import pytest
import torch
from torch import Tensor

from scope import Compression, SlotCache, patch
from scope.cache.layer import SlotLayer
from scope.cache.plan import slots_needed
from scope.registry import STRATEGIES
from tests.core.tiny import compression_of, random_tokens, tiny_model


def test_llama_31_8b_holds_the_budget_and_the_token_attended() -> None:
    slots = slots_needed(
        Compression("SnapKV", "slide", max_capacity_prompt=2048).recipe(4096),
        max_new_tokens=4096,
        num_layers=32,
        prompt_lengths=[3000],
    )
    kv_heads, head_dim, bytes_per_number = 8, 128, 2
    kv_bytes = sum(slots) * kv_heads * head_dim * bytes_per_number * 2
    assert kv_bytes == (2048 + 512 + 1) * 32 * 8 * 128 * 2 * 2


def test_tensors_hold_what_the_plan_says() -> None:
    model = tiny_model("gqa")
    cache = SlotCache(model.config, compression_of("SnapKV", "slide"), 40, batch_size=2)
    with patch(model), torch.inference_mode():
        for row in range(2):
            cache.admit([row])
            model(input_ids=torch.tensor([random_tokens(20, row)]), past_key_values=cache)
    layers, kv_heads, head_dim, bytes_per_number = 3, 2, 16, 4
    expected = 2 * (10 + 6 + 1) * layers * kv_heads * head_dim * bytes_per_number * 2
    assert cache.kv_bytes == expected
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == expected


@pytest.mark.parametrize(
    ("slots", "ring"),
    [(torch.bfloat16, torch.bfloat16), (torch.float8_e4m3fn, torch.float32)],
    ids=str,
)
def test_last_queries_take_no_more_than_they_come_with(
    slots: torch.dtype, ring: torch.dtype
) -> None:
    layer = SlotLayer(index=0)
    like = torch.empty(16, dtype=slots, device="meta")
    layer.allocate(like, 1, 2, 4, 8, {"queries": ("H_q", 3, "D"), "total": ("H", "S")})
    assert {name: state.dtype for name, state in layer.state.items()} == {
        "queries": ring, "total": torch.float32
    }  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", ["H2O", "PyramidKV"])
def test_nothing_grows_with_the_number_of_steps(method: str, strategy: str) -> None:
    model = tiny_model("gqa")
    cache = SlotCache(model.config, compression_of(method, strategy), 60)
    sizes = {}
    with patch(model), torch.inference_mode():
        model(input_ids=torch.tensor([random_tokens(20, seed=0)]), past_key_values=cache)
        for step, token in enumerate(random_tokens(60, seed=1), start=1):
            model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            if step in (10, 60):
                sizes[step] = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(cache))
    assert sizes[10] == sizes[60]


def _tensors(cache: SlotCache) -> list[Tensor]:
    """Every tensor that the cache or one of its layers holds as an attribute."""
    attributes = [value for owner in (cache, *cache.layers) for value in vars(owner).values()]
    return [value for value in attributes if isinstance(value, Tensor)]
