"""LoRC: a model of low rank gives the same from latents as from its keys and values."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression, ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.harness.models import load_model
from scope.methods.lorc import factorised, ranks
from scripts.lorc import FILE, check, factorise, main
from tests.core.tiny import random_tokens, tiny_factors, tiny_model

PROMPTS = [random_tokens(length, seed=length) for length in (30, 17)]
STEPS = 6
POOL = {"decoding_window_size": 5, "decoding_recent_size": 2}
ENDS = {"whole_sinks": 2, "whole_recent": 3}


def logits_of(model: PreTrainedModel, **options: object) -> Tensor:
    with patch(model) as patched:
        session = Session(patched, Compression("ALLKV", "slide", **options, **POOL), PROMPTS, STEPS)
        session.prefill()
        return torch.stack([session.step(torch.full((2,), s)).clone() for s in range(STEPS)])


@pytest.mark.parametrize("name", ["gqa", "qwen2", "mistral"])
def test_latents_are_the_keys_and_values_of_a_model_of_low_rank(name: str, tmp_path: Path) -> None:
    model, file = tiny_model(name), tmp_path / "lorc.safetensors"
    own = logits_of(model)
    save_file(factorise(model, 0.3, 0.6)[0], file)
    check(model, file)
    expected = logits_of(model)
    held = logits_of(model, low_rank=str(file), **ENDS)
    torch.testing.assert_close(held, expected, rtol=1e-3, atol=1e-3)
    assert (expected - own).abs().max() > 0.1


def test_factors_come_closest_and_rank_follows_condition_numbers() -> None:
    random = torch.Generator().manual_seed(0)
    keys, values = ([torch.randn(8, 6, generator=random) for _ in range(4)] for _ in range(2))
    down, up = factorised(keys[0], 4)
    spectrum = torch.linalg.svdvals(keys[0]).tolist()
    lost = float((up @ down - keys[0]).square().sum())
    assert lost == pytest.approx(sum(value**2 for value in spectrum[4:]), rel=1e-4)

    def log_condition(weight: Tensor) -> float:
        spectrum = torch.linalg.svdvals(weight.double()).tolist()
        return math.log(spectrum[0] / spectrum[-1])

    sums = [
        sum(log_condition(keys[j]) + log_condition(values[j]) for j in range(layer, 4))
        for layer in range(4)
    ]
    shares = [(one - sums[-1]) / (sums[0] - sums[-1]) for one in sums]
    assert ranks(keys, values, 0.2, 0.9) == [round(6 * (0.2 + 0.7 * s)) for s in shares]


def test_bytes_are_those_of_the_latents() -> None:
    compression = Compression("ALLKV", "slide", low_rank=tiny_factors(6), **ENDS, **POOL)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        plan = CachePlan.make(model.config, compression.recipe(STEPS), STEPS, [30, 17])
        session.step(torch.zeros(2, dtype=torch.int64))
    of_whole, of_latent, middle = 2 * 2 * 16 * 4, 2 * 6 * 4, 30 - 5
    expected = 3 * ((5 + 5 + 1) * of_whole + middle * of_latent)
    assert plan.kv_bytes(torch.float32) == expected
    assert session.cache.kv_bytes == 2 * expected
    assert session.cache.held_bytes()[0] == 3 * ((5 + 1) * of_whole + middle * of_latent)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("SnapKV", {"max_capacity_prompt": 10, "window_size": 3}, "give share_heads true"),
        ("LoCoCo", {"max_capacity_prompt": 10}, "LoCoCo changes them"),
        ("ALLKV", {"prompt_bits": 4}, "prompt_bits and low_rank do not go together"),
        ("ALLKV", {"fidelity": "upstream"}, "low_rank needs a prompt pool that never changes"),
        ("ALLKV", {"low_rank": "nowhere"}, "make the file with python -m scripts.lorc"),
    ],
)
def test_what_cannot_be_is_refused(method: str, options: dict[str, object], told: str) -> None:
    settings = {"low_rank": tiny_factors(), **options}
    with patch(tiny_model("gqa")) as model, pytest.raises(ScopeError, match=told):
        Session(model, Compression(method, "slide", **settings, **POOL), PROMPTS, STEPS).prefill()


def test_other_models_are_refused() -> None:
    compression = Compression("ALLKV", low_rank=tiny_factors())
    with patch(tiny_model("mha")) as model, pytest.raises(ScopeError, match="take this model's"):
        Session(model, compression, PROMPTS, STEPS).prefill()
    with pytest.raises(ScopeError, match="more, or less, than a projection each"):
        factorise(tiny_model("qwen3"), 0.5, 0.5)


def test_the_script_writes_a_model_and_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model_path", "scope/recall/model", "--out", str(tmp_path / "lorc")]
    assert main([*arguments, "--least", "0.5", "--most", "1"]) == 0
    assert capsys.readouterr().out.endswith("ranks 64 54 43 32\n")
    check(load_model(str(tmp_path / "lorc"), "float32", "cpu", "sdpa"), tmp_path / "lorc" / FILE)
    assert main([*arguments, "--least", "0"]) == 2
    assert "expected shares above 0" in capsys.readouterr().err
