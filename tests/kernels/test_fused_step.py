"""Prompts and decode steps in kernels, and on a GPU a graph, give what the plain model gives."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from scope import Compression, Fidelity, ScopeError, SlotCache, patch
from scope.attention import joined as joined_module
from scope.attention.joined import are_joined, joined
from scope.cache import writing
from scope.generation.fused import fused_step, longest_prompt, obstacle, prompt_obstacle
from scope.generation.greedy import generate
from scope.generation.session import Session
from tests.core.tiny import (
    PAIRS,
    backend,
    compression_of,
    random_tokens,
    tiny_heads,
    tiny_model,
)

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

ON_GPU = torch.cuda.is_available()
PROMPTS = [random_tokens(length, seed=length) for length in (60, 25, 90)]
SIZES = {
    "max_capacity_prompt": 40,
    "window_size": 8,
    "decoding_window_size": 32,
    "decoding_recent_size": 12,
}
on_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Models that are patched without kernels, until undone."""
    monkeypatch.setattr(writing, "backend_for", lambda keys: backend(False))
    monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys: False)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("gqa", None),
        ("mistral", None),
        ("qwen2", "1=0"),
        ("qwen3", "1=0"),
        ("qwen3-mixed", None),
    ],
)
def test_logits(name: str, shared: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in the interpreter."""
    model = tiny_model(name, num_layers=2).to("cuda" if ON_GPU else "cpu")
    compression = compression_of("SnapKV", "slide", 40, 8, 4, 2, share_layers=shared)
    logits: dict[bool, list[torch.Tensor]] = {}
    held: dict[bool, list[torch.Tensor]] = {}
    for fused in (False, True):
        reads = fused and longest_prompt(model) is None
        monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys, on=fused: on)
        monkeypatch.setattr(writing, "backend_for", lambda keys, on=fused: backend(on))
        monkeypatch.setattr(Session, "_reads_fused", lambda session, length, on=reads: on)
        with patch(model), torch.inference_mode():
            session = Session(model, compression, PROMPTS[:2], 8)
            logits[fused] = [session.prefill()]
            held[fused] = [layer.positions.clone() for layer in session.cache.layers]
            for step in range(6):
                tokens = torch.full((2,), step, device=model.device)
                if fused:
                    session.cache.begin_forward(len(tokens), 1, None, tokens.device)
                    logits[fused].append(fused_step(model, session.cache, tokens))
                else:
                    logits[fused].append(session.step(tokens))
    assert all(map(torch.equal, held[True], held[False]))
    torch.testing.assert_close(logits[True], logits[False], rtol=0, atol=1e-4)


@on_gpu
@pytest.mark.parametrize(
    "compression",
    [
        *(Compression.from_shared(*pair, **SIZES, heads=tiny_heads()) for pair in PAIRS),
        Compression("H2O", "adaptive", **SIZES, decoding_score="random"),
        Compression("ALLKV", "refreshkv", working_set=20, stride=5),
        Compression("KVCompress", "slide", **SIZES, protected_window=10, block_size=4),
        Compression("H2O", "h2o", **SIZES, share_layers="2=0"),
        Compression("ALLKV", merged_layers=1.0, whole_recent=4),
        Compression(
            "H2O", "discontinuous", **SIZES, decoding_score="cumulative", group_reduction="max"
        ),
        *(
            Compression.from_shared("H2O", strategy, **SIZES, fidelity=Fidelity.preset("upstream"))
            for strategy in ("slide", "discontinuous", "h2o")
        ),
    ],
    ids=lambda c: f"{c.method}-{c.decoding_metric}-{c.decoding_score}-{c.fidelity.cached_heads}",
)
def test_tokens_of_the_graph(compression: Compression, plain: pytest.MonkeyPatch) -> None:
    model, steps = tiny_model("gqa").cuda(), 200
    with patch(model), pytest.warns(UserWarning, match="decoding goes the slow way"):
        expected = dict(generate(Session(model, compression, PROMPTS, steps), steps, ()))
    plain.undo()
    with patch(model):
        session = Session(model, compression, PROMPTS, steps)
        assert dict(generate(session, steps, ())) == expected
        refilled = Session(model, compression, PROMPTS, steps, batch_size=2)
        assert dict(generate(refilled, steps, ())) == expected
    assert session._fast._recorded is not None


@on_gpu
def test_slots_in_host_memory_give_the_same_tokens() -> None:
    model, steps, found = tiny_model("gqa").cuda(), 200, []
    sizes = {"working_set": 20, "stride": 5}
    with patch(model):
        for offload in (False, True):
            compression = Compression("ALLKV", "refreshkv", **sizes, offload=offload)
            session = Session(model, compression, PROMPTS, steps, batch_size=2)
            found.append(dict(generate(session, steps, ())))
    assert found[0] == found[1]
    layer = session.cache.layers[0]
    assert layer.keys.is_pinned()
    assert layer.values.is_pinned()
    assert layer.working.listed.keys.is_cuda
    assert all(session._fast._recorded.values())


@on_gpu
@pytest.mark.parametrize("strategy", ["None", "slide", "adaptive", "discontinuous", "h2o", "slm"])
@pytest.mark.parametrize("batch", [3, 40])
def test_bfloat16_is_as_exact_as_plain(
    strategy: str, batch: int, plain: pytest.MonkeyPatch
) -> None:
    """Along the same tokens the graph is as close to float32 as the plain model in bfloat16 is.

    Neither can be much closer to the other: what is rounded differently also leaves differently.
    """
    exact = _model_of_whole_blocks()
    rounded = deepcopy(exact).bfloat16()
    exact.load_state_dict({name: w.float() for name, w in rounded.state_dict().items()})
    compression = Compression.from_shared("H2O", strategy, **SIZES)
    prompts = [random_tokens(length, seed=length) for length in range(60, 60 + batch)]
    text = torch.randint(200, (100, batch), generator=torch.Generator().manual_seed(2)).cuda()

    def logits(model: PreTrainedModel) -> torch.Tensor:
        with patch(model), torch.inference_mode():
            session = Session(model, compression, prompts, len(text))
            found = [session.prefill(), *(session.step(tokens).clone() for tokens in text)]
            return torch.stack(found).float()

    with pytest.warns(UserWarning, match="decoding goes the slow way"):
        reference, plainly = logits(exact), logits(rounded)
    plain.undo()
    error, usual = ((found - reference).square().mean() for found in (logits(rounded), plainly))
    assert error <= 1.5 * usual
    assert usual < 0.1 * reference.var()


def _model_of_whole_blocks() -> LlamaForCausalLM:
    """Of a size that the Triton linears take."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).cuda().eval()


@on_gpu
def test_row_starts_over_under_a_graph() -> None:
    model = tiny_model("gqa").cuda()
    compression = Compression("SnapKV", "slide", **SIZES)
    with patch(model), torch.inference_mode():
        fresh = Session(model, compression, [PROMPTS[2]], 80)
        expected = [fresh.prefill()[0]]
        expected += [fresh.step(torch.tensor([token]))[0].clone() for token in (5, 6, 7)]
        session = Session(model, compression, PROMPTS, 80)
        session.prefill()
        for token in range(50):
            session.step(torch.tensor([token] * 3))
        logits = [session.admit(0, 2)]
        logits += [session.step(torch.tensor([t, 1, 2]))[0].clone() for t in (5, 6, 7)]
    assert torch.equal(logits[0], expected[0])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@on_gpu
def test_warns_where_it_cannot() -> None:
    model = tiny_model("gqa").cuda()
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj)
    session = Session(model, Compression("SnapKV", "slide", **SIZES), PROMPTS, 4)
    with patch(model), pytest.warns(UserWarning, match="Sequential"):
        assert len(dict(generate(session, 4, ()))) == len(PROMPTS)


def test_joined_inside_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", num_layers=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = model.model.layers[1].self_attn
    linears = attention.q_proj, attention.k_proj, attention.v_proj

    def unchanged() -> bool:
        return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys: True)
    with patch(model):
        weight, bias = joined(*linears)
        assert torch.equal(weight, torch.cat([linear.weight for linear in linears]))
        assert torch.equal(bias, torch.cat([linear.bias for linear in linears]))
        assert weight.data_ptr() == linears[0].weight.data_ptr()
        assert are_joined(model)
        assert unchanged()
    assert unchanged()
    for parameter in model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.skipif(ON_GPU, reason="there they are")
def test_nothing_is_joined_without_kernels() -> None:
    model = tiny_model("gqa", num_layers=1)
    with patch(model):
        assert not are_joined(model)


def test_joining_sees_through_one_storage() -> None:
    """Parts of one storage in another order adjoin as little as parts of several."""
    parts = [nn.Parameter(torch.empty(2, 4)) for _ in range(2)]
    whole = torch.randn(4, 4)
    parts[0].data, parts[1].data = whole[2:], whole[:2]
    assert not joined_module._adjoin(parts)
    assert joined_module._adjoin(parts[::-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen3", None),
        ("gemma3", "the layers of Gemma3ForCausalLM are not those of Llama, Mistral"),
    ],
)
def test_which_models_are_fused(name: str, message: str | None) -> None:
    reason = joined_module.model_obstacle(tiny_model(name, num_layers=1))
    assert reason is None if message is None else reason.startswith(message)


@on_gpu
def test_a_graph_ends_with_its_patch() -> None:
    model = tiny_model("gqa").cuda()
    session = Session(model, Compression("SnapKV", "slide", **SIZES), PROMPTS, 8)
    with patch(model):
        session.prefill()
        session.step(torch.tensor([1, 2, 3]))
    with patch(model), pytest.raises(ScopeError, match="another session"):
        session.step(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [({}, "its weights are not joined"), ({"attn_implementation": "eager"}, "eager, not sdpa")],
)
def test_obstacles_to_prompts(
    change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gqa", num_layers=1, **change)
    monkeypatch.setattr(joined_module, "has_kernels_for", lambda keys: True)
    with patch(model):
        reason = prompt_obstacle(model)
    reason = reason or prompt_obstacle(model)
    assert message in reason


def test_obstacles() -> None:
    model = tiny_model("gqa")
    cache = SlotCache(model.config, Compression("SnapKV", "slide", **SIZES), 4)
    with patch(model):
        model(input_ids=torch.tensor([PROMPTS[0]]), past_key_values=cache)
        if not ON_GPU:
            assert "Triton" in obstacle(model, cache)
            assert "Triton" in prompt_obstacle(model)
