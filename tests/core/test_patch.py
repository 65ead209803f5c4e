"""The patch is reversible, stays with one model, and refuses what it cannot do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from scope import Compression, ScopeError, SlotCache, patch
from tests.core.tiny import compression_of, left_padded, random_tokens, tiny_model

PROMPT = torch.tensor([random_tokens(12, seed=1)])
COMPRESSION = compression_of("SnapKV", "slide", 8, 3, 4, 2)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("gqa")


@pytest.fixture
def patched(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    with patch(model), torch.inference_mode():
        yield model


def slot_cache(model: PreTrainedModel, max_new_tokens: int = 8) -> SlotCache:
    return SlotCache(model.config, COMPRESSION, max_new_tokens)


def own_attributes(model: PreTrainedModel) -> list[tuple[str, set[str], int]]:
    return [
        (name, set(vars(module)), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


def greedy(model: PreTrainedModel, **settings: object) -> Tensor:
    return model.generate(PROMPT, max_new_tokens=8, do_sample=False, **settings)


def test_leaves_no_trace(model: PreTrainedModel) -> None:
    attributes, tokens = own_attributes(model), greedy(model)
    with patch(model) as same:
        assert same is model
        assert own_attributes(model) != attributes
        greedy(model, past_key_values=slot_cache(model))
    assert own_attributes(model) == attributes
    assert torch.equal(greedy(model), tokens)


def test_is_undone_after_an_error(model: PreTrainedModel) -> None:
    attributes = own_attributes(model)
    with pytest.raises(RuntimeError, match="mine"), patch(model):
        raise RuntimeError("mine")
    assert own_attributes(model) == attributes


def test_another_instance_is_untouched(patched: PreTrainedModel) -> None:
    other = tiny_model("gqa")
    assert own_attributes(other) == own_attributes(tiny_model("gqa"))
    with pytest.raises(ScopeError, match="not patched"):
        greedy(other, past_key_values=slot_cache(other))
    with patch(other):  # both at once
        greedy(other, past_key_values=slot_cache(other))


def test_other_caches_work_inside(patched: PreTrainedModel) -> None:
    expected = greedy(tiny_model("gqa"))
    assert torch.equal(greedy(patched), expected)
    assert torch.equal(greedy(patched, past_key_values=DynamicCache()), expected)
    assert torch.equal(greedy(patched, use_cache=False), expected)


def test_prompt_logits_are_exact(patched: PreTrainedModel) -> None:
    logits = patched(input_ids=PROMPT, past_key_values=slot_cache(patched)).logits
    torch.testing.assert_close(logits, tiny_model("gqa")(input_ids=PROMPT).logits)


def test_embeddings_instead_of_tokens(patched: PreTrainedModel) -> None:
    embeddings = patched.model.embed_tokens(PROMPT)
    by_embeddings = patched(inputs_embeds=embeddings, past_key_values=slot_cache(patched)).logits
    by_tokens = patched(input_ids=PROMPT, past_key_values=slot_cache(patched)).logits
    assert torch.equal(by_embeddings, by_tokens)


def test_refuses_a_second_patch(patched: PreTrainedModel) -> None:
    with pytest.raises(ScopeError, match="already patched"):
        patch(patched).__enter__()
    greedy(patched, past_key_values=slot_cache(patched))  # the first one is still in place


def test_refuses_a_second_prompt_without_reset(patched: PreTrainedModel) -> None:
    cache = slot_cache(patched)
    first = patched(input_ids=PROMPT, past_key_values=cache).logits
    with pytest.raises(ScopeError, match=r"reset\(\)"):
        patched(input_ids=PROMPT, past_key_values=cache)
    cache.reset()
    assert torch.equal(patched(input_ids=PROMPT, past_key_values=cache).logits, first)


def test_refuses_a_second_turn_rather_than_forget_the_first(patched: PreTrainedModel) -> None:
    cache = slot_cache(patched)
    first = greedy(patched, past_key_values=cache)
    with pytest.raises(ScopeError, match="already holds a text, and a second turn"):
        greedy(patched, past_key_values=cache)
    cache.reset()
    assert torch.equal(greedy(patched, past_key_values=cache), first)


def test_refuses_right_padding(patched: PreTrainedModel) -> None:
    mask = torch.ones_like(PROMPT)
    mask[:, -2:] = 0
    with pytest.raises(ScopeError, match="padding_side = 'left'"):
        patched(input_ids=PROMPT, attention_mask=mask, past_key_values=slot_cache(patched))


def test_refuses_an_empty_prompt(patched: PreTrainedModel) -> None:
    batch = {"input_ids": PROMPT, "attention_mask": torch.zeros_like(PROMPT)}
    with pytest.raises(ScopeError):
        patched(**batch, past_key_values=slot_cache(patched))


def test_refuses_a_generation_longer_than_planned(patched: PreTrainedModel) -> None:
    cache = slot_cache(patched, max_new_tokens=3)
    patched(input_ids=PROMPT, past_key_values=cache)
    for _ in range(3):
        patched(input_ids=PROMPT[:, :1], past_key_values=cache)
    with pytest.raises(ScopeError, match="max_new_tokens 3"):
        patched(input_ids=PROMPT[:, :1], past_key_values=cache)


def test_refuses_another_batch_size(patched: PreTrainedModel) -> None:
    cache = slot_cache(patched)
    patched(**left_padded([[1, 2], [3]]), past_key_values=cache)
    with pytest.raises(ScopeError, match="3 rows"):
        patched(input_ids=PROMPT[0, :3, None], past_key_values=cache)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=["beams", "assisted"]
)
def test_refuses_other_ways_to_generate(patched: PreTrainedModel, settings: dict[str, int]) -> None:
    with pytest.raises(ScopeError, match="not supported"):
        greedy(patched, past_key_values=slot_cache(patched, 20), **settings)


def test_refuses_a_cache_for_nothing(model: PreTrainedModel) -> None:
    with pytest.raises(ScopeError, match="max_new_tokens"):
        slot_cache(model, max_new_tokens=0)


def test_a_cache_made_too_small_is_told() -> None:
    with patch(tiny_model("gqa")) as model:
        for settings, prompts, message in (
            ({"prompt_lengths": [5]}, [random_tokens(30, seed=0)], "a prompt of 30 tokens"),
            ({"batch_size": 1}, [random_tokens(5, seed=0)] * 2, "row 1 was admitted"),
        ):
            cache = SlotCache(model.config, Compression(), 4, **settings)
            with pytest.raises(ScopeError, match=message):
                model(torch.tensor(prompts), past_key_values=cache)


def test_steps_outside_no_grad_keep_no_graph() -> None:
    with patch(tiny_model("gqa")) as model:
        cache = SlotCache(model.config, Compression(), 4)
        assert cache.kv_bytes == 0
        model(torch.tensor([random_tokens(5, seed=0)]), past_key_values=cache)
        model(torch.tensor([[1]]), past_key_values=cache)
        assert not any(layer.keys.requires_grad for layer in cache.layers)
        assert cache.kv_bytes > 0


def test_two_models_of_one_configuration(model: PreTrainedModel) -> None:
    """Each is patched and left on its own, in any order."""
    other = type(model)(model.config).eval()
    expected, others = (greedy(m, past_key_values=None) for m in (model, other))
    with ExitStack() as second:
        with patch(model):
            second.enter_context(patch(other))
            first = greedy(model, past_key_values=slot_cache(model))
        assert torch.equal(greedy(model), expected)
        compressed = greedy(other, past_key_values=slot_cache(other))
    with patch(other):
        assert torch.equal(greedy(other, past_key_values=slot_cache(other)), compressed)
    assert torch.equal(greedy(other), others)
    assert not torch.equal(first, compressed)


def test_threads_do_not_mix(patched: PreTrainedModel) -> None:
    """One generates from slots, the other from a cache of transformers, on the same model."""
    slots = partial(slot_cache, patched)
    expected = [greedy(patched, past_key_values=make()) for make in (slots, DynamicCache)]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(lambda m=m: greedy(patched, past_key_values=m()))
            for m in (slots, DynamicCache) * 4
        ]
        found = [run.result() for run in runs]
    assert all(torch.equal(*pair) for pair in zip(found, expected * 4, strict=True))


def test_after_an_error_inside_attention_nothing_is_under_way(
    patched: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(tiny_model("gqa"))
    with monkeypatch.context() as broken:
        broken.setattr(patched.model.layers[1].self_attn.q_proj, "forward", None)
        with pytest.raises(TypeError):
            greedy(patched, past_key_values=slot_cache(patched))
    assert torch.equal(greedy(patched, past_key_values=DynamicCache()), expected)


def test_an_implementation_chosen_inside_is_used(patched: PreTrainedModel) -> None:
    patched.set_attn_implementation("eager")
    output = patched(PROMPT, past_key_values=slot_cache(patched), output_attentions=True)
    assert output.attentions[0].shape == (1, 4, 12, 12)


def test_the_normed_input_reaches_the_cache(
    patched: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, seen = slot_cache(patched), []
    monkeypatch.setattr(cache, "store_prompt", lambda *given: seen.append(given[-2]))
    patched(PROMPT, past_key_values=cache)
    first = patched.model.layers[0].input_layernorm(patched.model.embed_tokens(PROMPT))
    assert torch.equal(seen[0], first)
    assert len(seen) == 3


def test_refuses_a_cache_of_another_depth(patched: PreTrainedModel) -> None:
    cache = slot_cache(tiny_model("gqa", num_layers=2))
    with pytest.raises(ScopeError, match="made for 2 layers and the model has 3"):
        greedy(patched, past_key_values=cache)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"max_new_tokens": 9}, 9),
        ({"max_length": 12 + 9}, 9),
        ({"generation_config": GenerationConfig(max_new_tokens=10)}, 10),
        ({}, 20),
    ],
)
def test_refuses_a_cache_for_fewer_tokens(
    patched: PreTrainedModel, settings: dict[str, Any], wanted: int
) -> None:
    with pytest.raises(ScopeError, match=f"asked for {wanted} new tokens .* made for 8"):
        patched.generate(PROMPT, past_key_values=slot_cache(patched), **settings)


def test_as_many_tokens_as_the_cache_is_for(patched: PreTrainedModel) -> None:
    tokens = patched.generate(PROMPT, past_key_values=slot_cache(patched), max_length=12 + 8)
    assert tokens.shape == (1, 20)


def test_positions_are_honoured_or_refused(patched: PreTrainedModel) -> None:
    batch = left_padded([[1, 2, 3], [4]])
    expected = patched(**batch, past_key_values=slot_cache(patched)).logits
    # On padding positions mean nothing: transformers itself has written 0 and 1 there.
    same = torch.tensor([[0, 1, 2], [1, 1, 0]])
    found = patched(**batch, past_key_values=slot_cache(patched), position_ids=same).logits
    assert torch.equal(found[:, -1], expected[:, -1])
    for other in (same + 1, torch.zeros(3, 2, 3, dtype=torch.int64)):
        with pytest.raises(ScopeError, match="position_ids differ"):
            patched(**batch, past_key_values=slot_cache(patched), position_ids=other)


def test_accelerate_hooks(model: PreTrainedModel) -> None:
    """Offloaded weights come for each module's forward, which accelerate has replaced."""
    with patch(model):
        expected = greedy(model, past_key_values=slot_cache(model))
    cpu_offload(model, execution_device="cpu")
    with patch(model):
        assert torch.equal(greedy(model, past_key_values=slot_cache(model)), expected)


class Adapted(nn.Module):
    """Looks as PEFT's models do, which need not be installed."""

    def __init__(self, base: PreTrainedModel, prompt: bool) -> None:
        super().__init__()
        self.base = base
        self.active_peft_config = SimpleNamespace(is_prompt_learning=prompt, peft_type="PREFIX")

    def get_base_model(self) -> PreTrainedModel:
        return self.base


def test_adapters(model: PreTrainedModel) -> None:
    with patch(Adapted(model, prompt=False)) as adapted:
        greedy(adapted.base, past_key_values=slot_cache(model))
    with pytest.raises(ScopeError, match="Adapted is not supported with PREFIX"):
        patch(Adapted(model, prompt=True)).__enter__()
