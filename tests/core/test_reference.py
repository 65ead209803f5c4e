"""Kept sets and logits equal those of the slow reference, for every method and strategy."""

import pytest
import torch

from scope import Compression, SlotCache, patch
from scope.generation.session import Session
from tests.core.slow_reference import SlowReference, Step
from tests.core.tiny import PAIRS, VOCABULARY, random_tokens, tiny_heads, tiny_model

CAPACITY, STEPS = 12, 16
PROMPT_LENGTHS = [CAPACITY - 4, CAPACITY, CAPACITY + 1, 2 * CAPACITY - 2]
SIZES = {
    "max_capacity_prompt": CAPACITY,
    "window_size": 3,
    "decoding_window_size": 7,
    "decoding_recent_size": 3,
    "period": 4,
    "heads": tiny_heads(),
    "least_similarity": 0.0,
    "working_set": 6,
    "stride": 3,
    "protected_window": 4,
    "block_size": 3,
}


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
@pytest.mark.parametrize(
    "settings",
    [
        {"decoding_score": "current", "group_reduction": "mean", "pooling": "maxpool"},
        {"decoding_score": "cumulative", "group_reduction": "max", "pooling": "avgpool"},
    ],
    ids=["current-mean-maxpool", "cumulative-max-avgpool"],
)
def test_every_pair(method: str, strategy: str, settings: dict[str, str]) -> None:
    seed = PAIRS.index((method, strategy))
    compare("gqa", Compression.from_shared(method, strategy, **SIZES, **settings), seed)


@pytest.mark.parametrize("strategy", ["slide", "h2o"])
@pytest.mark.parametrize(
    "settings",
    [
        {"decoding_score": "current", "group_reduction": "max", "kernel_size": 1},
        {"decoding_score": "cumulative", "group_reduction": "mean", "kernel_size": 9},
        {"decoding_score": None, "pooling": "avgpool", "kernel_size": 5},
    ],
)
def test_other_settings(strategy: str, settings: dict[str, str | int | None]) -> None:
    compare("gqa", Compression.from_shared("SnapKV", strategy, **SIZES, **settings), seed=50)


@pytest.mark.parametrize("model_name", ["mha", "mistral", "qwen2"])
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("H2O", "h2o"),
        ("H2O", "adaptive"),
        ("SnapKV", "slide"),
        ("PyramidKV", "discontinuous"),
        ("PyramidInfer", "pyramidinfer"),
        ("StreamingLLM", "slm"),
        ("ALLKV", "slide"),
    ],
)
def test_every_architecture(model_name: str, method: str, strategy: str) -> None:
    compare(model_name, Compression.from_shared(method, strategy, **SIZES), seed=60)


@pytest.mark.parametrize("strategy", ["slide", "discontinuous", "h2o", "pyramidinfer"])
def test_ties_go_to_the_earlier_token(strategy: str) -> None:
    # A token whose embedding is 0 asks for nothing: it attends to all tokens equally.
    silent = torch.arange(0, VOCABULARY, 2)
    compression = Compression.from_shared("H2O", strategy, **SIZES, decoding_score="current")
    compare("gqa", compression, seed=70, silent=silent)


def compare(
    model_name: str, compression: Compression, seed: int, silent: torch.Tensor | None = None
) -> None:
    """Feed the same random tokens to both after prompts of all `PROMPT_LENGTHS`."""
    # In float64 no near tie falls one way here and the other way there.
    model = tiny_model(model_name, seed, dtype=torch.float64)
    if silent is not None:
        model.model.embed_tokens.weight.data[silent] = 0
    prompts = [random_tokens(n, 100 * seed + n) for n in PROMPT_LENGTHS]
    forced = torch.tensor([random_tokens(STEPS, 200 * seed + n) for n in PROMPT_LENGTHS])
    references = [SlowReference(model, compression, STEPS) for _ in prompts]
    expected = [r.read_prompt(p) for r, p in zip(references, prompts, strict=True)]
    with patch(model):
        session = Session(model, compression, prompts, STEPS)
        check(session.cache, session.prefill(), expected, "after the prompt")
        for step, tokens in enumerate(forced.T, start=1):
            logits = session.step(tokens)
            expected = [r.read_token(t) for r, t in zip(references, tokens.tolist(), strict=True)]
            check(session.cache, logits, expected, f"after step {step}")


def check(cache: SlotCache, logits: torch.Tensor, expected: list[Step], when: str) -> None:
    reach = getattr(cache.config, "sliding_window", None)
    for row, reference in enumerate(expected):
        oldest = 0
        if reach is not None:
            # Which of the tokens goes that no query will ever see again, is nobody's business.
            oldest = reference.kept[0][0][-1] + 2 - reach
        for layer_idx, layer in enumerate(cache.layers):
            for head, positions in enumerate(layer.opened().positions[row].tolist()):
                held = sorted(p for p in positions if p >= 0)
                wanted = reference.kept[layer_idx][head]
                where = f"{when}: row {row}, layer {layer_idx}, head {head}"
                assert len(held) == len(wanted), where
                assert [p for p in held if p >= oldest] == [p for p in wanted if p >= oldest], where
        torch.testing.assert_close(logits[row], reference.logits, rtol=0, atol=1e-4)
