"""A row of a batch gives the tokens that it gives alone, however it is generated."""

from collections.abc import Collection

import pytest
import torch
from transformers import PreTrainedModel

from scope import Compression, SlotCache, patch
from scope.generation import greedy
from scope.generation.greedy import generate
from scope.generation.session import Session
from tests.core.tiny import PAIRS, compression_of, left_padded, random_tokens, tiny_model

STEPS = 14
PROMPTS = [random_tokens(length, seed=length) for length in (11, 21, 14)]
QUEUE = [*PROMPTS, *(random_tokens(length, seed=length) for length in (9, 17, 13))]


def compress(method: str, strategy: str) -> Compression:
    return compression_of(method, strategy)


def generated(
    model: PreTrainedModel, cache: SlotCache, prompts: list[list[int]], **settings: object
) -> list[list[int]]:
    batch = left_padded(prompts)
    settings = {"max_new_tokens": STEPS, "do_sample": False, **settings}
    tokens = model.generate(**batch, past_key_values=cache, **settings)
    return tokens[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_batch_equals_single(method: str, strategy: str) -> None:
    model = tiny_model("gqa", seed=PAIRS.index((method, strategy)))
    compression = compress(method, strategy)
    with patch(model):
        single = [
            generated(model, SlotCache(model.config, compression, STEPS), [prompt])[0]
            for prompt in PROMPTS
        ]
        cache = SlotCache(model.config, compression, STEPS)
        assert generated(model, cache, PROMPTS) == single
        # The same cache again, once it has forgotten. And the order of the rows changes nothing.
        cache.reset()
        assert generated(model, cache, PROMPTS[::-1]) == single[::-1]
        rows = generations(model, compression, PROMPTS)
        assert [row.tokens for row in rows] == single
        assert {row.stopped for row in rows} == {"length"}


def generations(
    model: PreTrainedModel,
    compression: Compression,
    prompts: list[list[int]],
    ends: Collection[int] = (),
    min_new_tokens: int = 0,
    batch_size: int | None = None,
) -> list[greedy.Generation]:
    session = Session(model, compression, prompts, STEPS, batch_size)
    found = list(generate(session, STEPS, ends, min_new_tokens))
    assert sorted(index for index, _ in found) == list(range(len(prompts)))
    return [generation for _, generation in sorted(found, key=lambda pair: pair[0])]


def early_ends(model: PreTrainedModel, compression: Compression) -> tuple[int, ...]:
    """End tokens at which some of the queue end, one of them at its first token."""
    free = generations(model, compression, QUEUE)
    return free[0].tokens[3], free[2].tokens[0], free[4].tokens[6]


@pytest.mark.parametrize(("method", "strategy"), PAIRS)
def test_refilled_rows_equal_single(method: str, strategy: str) -> None:
    model = tiny_model("gqa", seed=PAIRS.index((method, strategy)))
    compression = compress(method, strategy)
    with patch(model):
        ends = early_ends(model, compression)
        single = [generations(model, compression, [prompt], ends)[0] for prompt in QUEUE]
        assert len({len(generation.tokens) for generation in single}) > 2
        assert generations(model, compression, QUEUE, ends, batch_size=2) == single
        reverse = generations(model, compression, QUEUE[::-1], ends, batch_size=2)
        assert reverse[::-1] == single


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("SnapKV", "slide"), ("H2O", "h2o"), ("ALLKV", "refreshkv"), ("KVMerger", "periodic")],
)
def test_when_tokens_are_looked_at_changes_nothing(
    method: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compression = tiny_model("gqa", seed=7), compress(method, strategy)
    with patch(model):
        ends = early_ends(model, compression)
        single = [generations(model, compression, [prompt], ends)[0] for prompt in QUEUE]
        monkeypatch.setattr(greedy, "_steps_per_look", lambda device: 5)
        for looks_ahead in (0, 1, 2):
            monkeypatch.setattr(greedy, "_looks_ahead", lambda device, ahead=looks_ahead: ahead)
            assert generations(model, compression, QUEUE, ends, batch_size=2) == single


def test_texts_do_not_end_before_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compression = tiny_model("gqa"), compress("H2O", "slide")

    def slowly(prompt: list[int], ends: set[int], least: int) -> list[int]:
        session, tokens = Session(model, compression, [prompt], STEPS), []
        logits = session.prefill()
        while True:
            order = logits[0].argsort(descending=True).tolist()
            tokens.append(next(t for t in order if len(tokens) >= least or t not in ends))
            if tokens[-1] in ends or len(tokens) == STEPS:
                return tokens
            logits = session.step(torch.tensor(tokens[-1:]))

    with patch(model):
        free = [generation.tokens for generation in generations(model, compression, QUEUE)]
        ends = {tokens[place] for tokens in free for place in (1, 3, 4)}
        monkeypatch.setattr(greedy, "_steps_per_look", lambda device: 3)
        monkeypatch.setattr(greedy, "_looks_ahead", lambda device: 1)
        for least in (1, 4, 5):
            expected = [slowly(prompt, ends, least) for prompt in QUEUE]
            found = generations(model, compression, QUEUE, ends, least, batch_size=2)
            assert [generation.tokens for generation in found] == expected
            assert least + 1 in map(len, expected)


def test_prompts_that_are_done_are_left_out() -> None:
    model, compression = tiny_model("gqa"), compress("H2O", "slide")
    with patch(model):
        rest = generate(Session(model, compression, QUEUE, STEPS, 2), STEPS, (), done={0, 3, 5})
        assert sorted(index for index, _ in rest) == [1, 2, 4]


def test_every_token_is_counted() -> None:
    model, compression, counted = tiny_model("gqa"), compress("H2O", "slide"), []
    with patch(model):
        session = Session(model, compression, QUEUE, STEPS, batch_size=4)
        found = dict(generate(session, STEPS, early_ends(model, compression), 0, counted.append))
    for index, generation in found.items():
        assert sum(indices.count(index) for indices in counted) == len(generation.tokens)


@pytest.mark.parametrize("model_name", ["mistral", "qwen2"])
def test_batch_equals_single_on_other_architectures(model_name: str) -> None:
    model, compression = tiny_model(model_name), compress("SnapKV", "slide")
    with patch(model):
        single = [
            generated(model, SlotCache(model.config, compression, STEPS), [prompt])[0]
            for prompt in PROMPTS
        ]
        assert generated(model, SlotCache(model.config, compression, STEPS), PROMPTS) == single


def test_compression_changes_the_tokens() -> None:
    """Guards the tests above: these budgets are small enough to matter."""
    model = tiny_model("gqa")
    with patch(model):
        outputs = [
            generated(model, SlotCache(model.config, compress(*pair), STEPS), PROMPTS)
            for pair in [("ALLKV", "None"), ("ALLKV", "slide"), ("SnapKV", "None")]
        ]
    assert outputs[0] != outputs[1] != outputs[2] != outputs[0]


def test_session_ends_each_row_at_its_own_end_token() -> None:
    model, compression = tiny_model("gqa"), compress("H2O", "slide")
    with patch(model):
        free = generations(model, compression, PROMPTS)
        end = free[0].tokens[3]
        rows = generations(model, compression, PROMPTS, (end,))
    for unbounded, generation in zip(free, rows, strict=True):
        tokens = unbounded.tokens
        length = tokens.index(end) + 1 if end in tokens else STEPS
        assert generation.tokens == tokens[:length]
        assert generation.stopped == ("eos" if end in tokens else "length")
    assert rows[0].stopped == "eos"


def test_sampling_is_reproducible() -> None:
    model, compression = tiny_model("gqa"), compress("H2O", "adaptive")
    runs = []
    with patch(model):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            cache = SlotCache(model.config, compression, STEPS)
            runs.append(generated(model, cache, PROMPTS, do_sample=True, temperature=3.0))
    assert runs[0] == runs[1] != runs[2]
    assert all(len(row) == STEPS for row in runs[0])


def test_a_row_starts_over_while_the_others_run_on() -> None:
    model, compression = tiny_model("gqa"), compress("SnapKV", "slide")
    with patch(model), torch.inference_mode():
        fresh = Session(model, compression, [PROMPTS[2]], STEPS)
        expected = [fresh.prefill()[0]]
        expected += [fresh.step(torch.tensor([token]))[0] for token in (5, 6, 7)]
        session = Session(model, compression, PROMPTS, STEPS)
        session.prefill()
        for token in range(8):
            session.step(torch.tensor([token, token, token]))
        logits = [session.admit(0, 2)]
        logits += [session.step(torch.tensor([token, 1, 2]))[0] for token in (5, 6, 7)]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
