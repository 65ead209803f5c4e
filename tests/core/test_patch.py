"""The patch is reversible, stays with one model, and refuses what it cannot do."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

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
    assert all("forward" not in vars(module) for module in other.modules())
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


def test_refuses_an_unsupported_model() -> None:
    config = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)
    with pytest.raises(ScopeError, match=r"GPT2LMHeadModel.*LlamaForCausalLM.*Mistral.*Qwen2"):
        patch(GPT2LMHeadModel(config)).__enter__()


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
