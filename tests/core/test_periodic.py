"""Eviction in bursts, and the scores that are asked for nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from scope import Compression, ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.session import Session
from scope.methods.api import Slots
from scope.methods.rope import frequencies
from scope.plots.example import RECALL_MODEL
from scope.recall.build import main as build_main
from scope.scores.snapkv_decode import SnapKVDecode
from scripts.calibrate_triattention import calibrate
from scripts.calibrate_triattention import main as calibrate_main
from tests.core import test_reference
from tests.core.periodic_reference import PeriodicReference
from tests.core.test_open_house import PROMPTS, run
from tests.core.tiny import tiny_model

POOL = {"decoding_window_size": 6, "decoding_recent_size": 3, "period": 3}
SCORES = {
    "snapkv_decode": {"last_queries": 2},
    "morphkv": {"last_queries": 3, "fusion": "max"},
    "rkv": {"last_queries": 3, "attention_weight": 0.5},
    "rpc": {"last_queries": 3},
    "expected": {"last_queries": 5, "foreseen": 9},
    "triattention": {},
}
every_score = pytest.mark.parametrize("score", SCORES)


@pytest.fixture(scope="module", autouse=True)
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the tiny models, made up."""
    random, file = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("made") / "up"
    means = {f"mean_query.{n}": torch.randn(4, 16, generator=random) for n in range(3)}
    means |= {f"spread.{n}": torch.rand(4, 8, generator=random) for n in range(3)}
    save_file(means, file)
    SCORES["triattention"]["calibration"] = str(file)
    return str(file)


@every_score
@pytest.mark.parametrize(
    ("model_name", "strategy"), [("gqa", "periodic"), ("gqa", "h2o"), ("mistral", "slide")]
)
def test_kept_sets_are_those_of_plain_loops(
    model_name: str, strategy: str, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (strategy, score) == ("h2o", "rpc"):
        pytest.skip("heads that hold different tokens of a prompt have no set in common")
    monkeypatch.setattr(test_reference, "SlowReference", PeriodicReference)
    compression = Compression.from_shared(
        "SnapKV",
        strategy,
        decoding_score=score,
        max_capacity_prompt=12,
        window_size=3,
        **POOL,
        **SCORES[score],
    )
    test_reference.compare(model_name, compression, seed=80)


@pytest.mark.parametrize("score", ["morphkv", "expected"])
def test_queries_that_have_not_come_give_nothing(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for w queries: seven have come when the first token leaves."""
    monkeypatch.setattr(test_reference, "SlowReference", PeriodicReference)
    options = {**SCORES[score], "last_queries": 10}
    sizes = {"max_capacity_prompt": 12, "window_size": 3}
    compression = Compression.from_shared(
        "SnapKV", "h2o", decoding_score=score, **sizes, **POOL, **options
    )
    test_reference.compare("gqa", compression, seed=81)


def kept(compression: Compression) -> list[list[torch.Tensor]]:
    return run(compression, PROMPTS)[1]


@every_score
def test_every_step_is_slide(score: str) -> None:
    pool = {"decoding_window_size": 6, "decoding_recent_size": 3, "decoding_score": score}
    often = Compression("ALLKV", "periodic", period=1, **pool, **SCORES[score])
    slide = Compression("ALLKV", "slide", **pool, **SCORES[score])
    for ours, theirs in zip(kept(often), kept(slide), strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("score", ["snapkv_decode", "morphkv", "rkv", "rpc"])
@pytest.mark.parametrize("share_heads", [False, True])
def test_of_a_pool_smaller_than_w_the_newest_stay(score: str, share_heads: bool) -> None:
    options = {**SCORES[score], "last_queries": 20, "share_heads": share_heads}
    held = kept(Compression("ALLKV", "periodic", decoding_score=score, **POOL, **options))
    length, step = len(PROMPTS[0]), 12  # 6 tokens stay after steps 9 and 12
    for positions in held[step]:
        for head in positions[0].tolist():
            generated = sorted(p - length for p in head if p >= length)
            assert generated == list(range(step - 6, step))


def test_it_takes_as_many_slots_as_it_says() -> None:
    compression = Compression("ALLKV", "periodic", **POOL, last_queries=2)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS[:1], 40)
        session.prefill()
        held = []
        for step in range(40):
            session.step(torch.tensor([step]))
            held.append(int((session.cache.layers[0].positions[0, 0] >= 0).sum()) - len(PROMPTS[0]))
    assert session.cache.plan.slots == (len(PROMPTS[0]) + 6 + 3,) * 3
    assert held[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert held[8:14] == [6, 7, 8, 6, 7, 8]


def test_rpc_keeps_its_share() -> None:
    compression = Compression("ALLKV", "rpc", period=8, keep_one_in=4, decoding_recent_size=2)
    with patch(tiny_model("gqa")) as model:
        session = Session(model, compression, PROMPTS[:1], 40)
        session.prefill()
        held = {}
        for step in range(1, 41):
            session.step(torch.tensor([step]))
            layer = session.cache.layers[0]
            mine, other = layer.positions[0].sort().values
            held[step] = int((mine >= 0).sum()) - len(PROMPTS[0])
            assert torch.equal(mine, other), "one set for all heads"
    assert [held[step] for step in (7, 8, 15, 16, 24, 32, 40)] == [7, 4, 11, 6, 8, 10, 12]


def test_scores_are_asked_only_where_tokens_leave() -> None:
    asked = []

    class Watched(SnapKVDecode):
        def worth(self, slots: Slots) -> Tensor:
            asked.append(int(slots.position[0]) - len(PROMPTS[0]) + 1)
            return super().worth(slots)

    run(Compression("ALLKV", "periodic", decoding_score=Watched, **POOL), PROMPTS[:1])
    assert sorted(set(asked)) == [9, 12]


@every_score
def test_a_row_that_came_later_is_cut_when_its_own_time_comes(score: str) -> None:
    compression = Compression("ALLKV", "periodic", decoding_score=score, **POOL, **SCORES[score])
    with patch(tiny_model("gqa")) as model:
        alone = []
        for prompt in PROMPTS[:2]:
            session = Session(model, compression, [prompt], 30)
            session.prefill()
            alone.append([session.step(torch.tensor([step]))[0] for step in range(20)])
        session = Session(model, compression, PROMPTS[:2], 30)
        session.admit(0, 0)
        for step in range(20):
            if step == 4:
                session.admit(1, 1)
            logits = session.step(torch.tensor([step, max(step - 4, 0)]))
            torch.testing.assert_close(logits[0], alone[0][step], rtol=1e-4, atol=1e-4)
            if step >= 4:
                torch.testing.assert_close(logits[1], alone[1][step - 4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 0}, "period is 0"),
        ({"last_queries": 0}, "last_queries is 0"),
        ({"decoding_score": "rkv", "attention_weight": 2.0}, "attention_weight is 2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_settings_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ScopeError, match=words):
        Compression("ALLKV", "periodic", **options)


def test_rpc_refuses_no_period() -> None:
    with pytest.raises(ScopeError, match="keep_one_in is 0"):
        Compression("ALLKV", "rpc", keep_one_in=0)


# --- scores that foresee positions ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gqa", "mistral", "qwen2", "qwen3", "phi3", "gemma3", "mixtral", "olmo2", "granite"]
)
def test_frequencies_are_the_models(name: str) -> None:
    model = tiny_model(name)
    config, rotary = model.config.get_text_config(), model.model.rotary_emb
    for layer in range(config.num_hidden_layers):
        own = "inv_freq" if hasattr(rotary, "inv_freq") else f"{config.layer_types[layer]}_inv_freq"
        torch.testing.assert_close(frequencies(config, layer), getattr(rotary, own))


@pytest.mark.parametrize(
    "scaled",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaled: scaled["rope_type"],
)
def test_frequencies_of_stretched_models(scaled: dict) -> None:
    config = LlamaConfig(head_dim=16, rope_parameters={"rope_theta": 5e5, **scaled})
    expected = LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(frequencies(config, 0), expected)


def test_layers_without_rope_do_not_turn() -> None:
    config = tiny_model("smollm3").config
    assert [bool(frequencies(config, layer).any()) for layer in range(3)] == [True, False, True]


def test_rope_that_is_not_known_is_refused() -> None:
    with pytest.raises(ScopeError, match=r"RoPE of glm4 \(default, 0.5 of a head\)"):
        frequencies(tiny_model("glm4").config, 0)


def test_calibration_is_the_mean_of_what_the_projections_give() -> None:
    model, texts = tiny_model("gqa"), [prompt[:9] for prompt in PROMPTS[:2]]
    found = calibrate(model, texts)
    hidden = [model.model.embed_tokens(torch.tensor(text)) for text in texts]
    layer = model.model.layers[0]
    queries = [layer.self_attn.q_proj(layer.input_layernorm(h)).view(-1, 4, 16) for h in hidden]
    mean = torch.cat(queries).mean(dim=0)
    torch.testing.assert_close(found["mean_query.0"], mean)
    lengths = torch.cat(queries).view(-1, 4, 2, 8).norm(dim=2).mean(dim=0)
    torch.testing.assert_close(found["spread.0"], lengths - mean.view(4, 2, 8).norm(dim=1))
    assert sorted(found) == sorted(f"{name}.{n}" for n in range(3) for name in SHAPES)


SHAPES = ("mean_query", "spread")


def test_a_missing_or_foreign_calibration_is_told(calibration: str, tmp_path: Path) -> None:
    def plan(file: str | None) -> None:
        compression = Compression(
            "ALLKV", "periodic", decoding_score="triattention", calibration=file
        )
        CachePlan.make(tiny_model("gqa").config, compression.recipe(9), 9, [9])

    def check(file: str | None, words: str) -> None:
        with pytest.raises(ScopeError, match=words):
            plan(file)

    check(None, "needs a file of the model: .*calibrate_triattention")
    check(str(tmp_path / "nothing"), "where there is none")
    foreign = tmp_path / "foreign"
    save_file(
        {name: part[..., :2].contiguous() for name, part in load_file(calibration).items()}, foreign
    )
    check(str(foreign), r"of another model: mean_query of layer 0 has shape \(4, 2\)")
    save_file({"mean_query.0": torch.zeros(4, 16)}, foreign)
    check(str(foreign), "no calibration of layer 0")
    foreign.write_text("no tensors")
    check(str(foreign), "no calibration of layer 0")


def test_the_script_writes_what_the_score_reads(tmp_path: Path) -> None:
    data, out = tmp_path / "prompts.jsonl", tmp_path / "folder" / "recall.safetensors"
    build_main(["--K", "4", "--seed", "5", "--num_prompts", "1", "--out", str(data)])
    model = str(RECALL_MODEL)
    arguments = ["--model_path", model, "--data_file", str(data), "--out", str(out)]
    assert calibrate_main([*arguments, "--max_new_tokens", "3"]) == 0
    compression = Compression(
        "ALLKV", "periodic", decoding_score="triattention", calibration=str(out)
    )
    CachePlan.make(LlamaConfig.from_pretrained(model), compression.recipe(9), 9, [9])
    assert calibrate_main([*arguments[:3], str(tmp_path / "none"), *arguments[4:]]) == 2
