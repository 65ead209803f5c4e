"""Every family of models: exact with all tokens kept, a batch as its rows alone, or refused."""

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from scope import Compression, ScopeError, SlotCache, patch
from scope.attention.support import check_config
from scope.generation.greedy import generate
from scope.generation.session import Session
from tests.core.tiny import (
    OTHER_FAMILIES,
    SLIDING_WINDOW,
    compression_of,
    left_padded,
    random_tokens,
    tiny_model,
)

STEPS = 8
PROMPTS = [random_tokens(length, seed=length) for length in (SLIDING_WINDOW + 9, 9, 14)]
ROOM = Compression("ALLKV", "None")
TIGHT = compression_of("SnapKV", "slide", 10, 3, 4, 2)
FAMILIES = [
    (name, implementation)
    for name in OTHER_FAMILIES
    for implementation in ("sdpa", "eager")
    if (name, implementation) != ("gemma2", "sdpa")  # which transformers does not have
]


@pytest.fixture(params=FAMILIES, ids="-".join)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    name, implementation = request.param
    return tiny_model(name, attn_implementation=implementation)


def test_logits_and_tokens_are_the_unpatched_models(model: PreTrainedModel) -> None:
    batch = left_padded(PROMPTS)
    settings = {
        "max_new_tokens": STEPS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected = model.generate(**batch, **settings)
    with patch(model):
        cache = SlotCache(model.config, ROOM, STEPS)
        found = model.generate(**batch, **settings, past_key_values=cache)
        untouched = model.generate(**batch, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(untouched.logits, expected.logits, rtol=0, atol=0)


def test_batch_equals_single_within_the_budget(model: PreTrainedModel) -> None:
    with patch(model):
        session = Session(model, TIGHT, PROMPTS, STEPS)
        batch = dict(generate(session, STEPS, ()))
        for index, prompt in enumerate(PROMPTS):
            single = dict(generate(Session(model, TIGHT, [prompt], STEPS), STEPS, ()))
            assert batch[index].tokens == single[0].tokens
        cache = SlotCache(model.config, TIGHT, STEPS)
        padded = left_padded(PROMPTS)
        tokens = model.generate(
            **padded, past_key_values=cache, max_new_tokens=STEPS, do_sample=False
        )
    assert tokens[:, -STEPS:].tolist() == [batch[index].tokens for index in range(len(PROMPTS))]
    for layer in cache.layers:
        for row, prompt in enumerate(PROMPTS):
            for head in layer.positions[row].tolist():
                held = {position for position in head if position >= 0}
                assert len([p for p in held if p < len(prompt)]) == min(len(prompt), 10)
                assert len([p for p in held if p >= len(prompt)]) == 4


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SPECIAL = {"Gemma3nText": {"num_hidden_layers": 10, "num_kv_shared_layers": 5}}
REFUSED = {
    "Gemma2": "soft-capping",
    "GptOss": "attention sinks",
    "DeepseekV3": "MLA",
    "Llama4Text": "chunked_attention",
    "Mamba": "position_ids",
    "Bloom": "position_ids",
    "Qwen3Next": "linear_attention",
    "T5": "causal LMs",
    "Gemma3nText": "share keys and values",
}


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_others_are_refused_by_name(family: str, reason: str) -> None:
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **SPECIAL.get(family, {})})
    with pytest.raises(ScopeError, match=rf"not supported: .*{reason}") as raised:
        check_config(config)
    assert "\n" not in str(raised.value)


def test_a_configuration_that_makes_no_model_is_refused() -> None:
    config = transformers.LlamaConfig(**SMALL)
    config.hidden_act = "sillu"
    with pytest.raises(ScopeError, match=r"LlamaForCausalLM cannot be made .*sillu"):
        check_config(config)


def test_an_attention_that_passes_the_interface_by_is_refused() -> None:
    model = tiny_model("gqa")
    attention = model.model.layers[0].self_attn
    attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with patch(model), pytest.raises(ScopeError, match=r"LlamaAttention.*not go through"):
        model(torch.tensor([[1]]), past_key_values=SlotCache(model.config, ROOM, 4))


@pytest.mark.parametrize("foreign", ["softcap", "s_aux", "position_bias"])
def test_an_argument_that_slots_do_not_apply_is_refused(foreign: str) -> None:
    model = tiny_model("gqa")
    cache = SlotCache(model.config, ROOM, 4)
    with patch(model), pytest.raises(ScopeError, match=f"do not apply its {foreign}"):
        model(torch.tensor([[1]]), past_key_values=cache, **{foreign: 1.0})


def test_an_attention_of_two_maps_is_refused() -> None:
    model = transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**SMALL)).eval()
    with patch(model), pytest.raises(ScopeError, match="attends more than once"):
        model(torch.tensor([[1]]), past_key_values=SlotCache(model.config, ROOM, 4))


def test_a_window_that_is_not_said_is_refused() -> None:
    model = tiny_model("gemma3")
    model.model.layers[0].self_attn.sliding_window = None
    with patch(model), pytest.raises(ScopeError, match="how far its window reaches"):
        model(torch.tensor([[1]]), past_key_values=SlotCache(model.config, ROOM, 4))
