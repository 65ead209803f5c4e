"""A row of a batch gives the tokens that it gives alone, however it is generated."""

import pytest
import torch
from transformers import PreTrainedModel

from scope import Compression, SlotCache, patch
from scope.generation import greedy
from scope.generation.greedy import generate
from scope.generation.session import Session
from tests.core.tiny import PAIRS, left_padded, random_tokens, tiny_model

LENGTHS, STEPS = [11, 21, 14], 14
PROMPTS = [random_tokens(length, seed=length) for length in LENGTHS]


def compress(method: str, strategy: str) -> Compression:
    return Compression(method, strategy, 10, 3, decoding_window_size=6, decoding_recent_size=2)


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
        # The same cache again: it starts afresh. And the order of the rows changes nothing.
        assert generated(model, cache, PROMPTS[::-1]) == single[::-1]
        session = Session(model, compression, PROMPTS, STEPS)
        rows = dict(generate(session, STEPS, eos_token_ids=()))
        assert [rows[row].tokens for row in range(len(PROMPTS))] == single
        assert {row.stopped for row in rows.values()} == {"length"}


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
        free = dict(generate(Session(model, compression, PROMPTS, STEPS), STEPS, ()))
        end = free[0].tokens[3]
        rows = dict(generate(Session(model, compression, PROMPTS, STEPS), STEPS, (end,)))
        late = dict(generate(Session(model, compression, PROMPTS, STEPS), STEPS, (end,), 5))
    for row, generation in rows.items():
        tokens = free[row].tokens
        length = tokens.index(end) + 1 if end in tokens else STEPS
        assert generation.tokens == tokens[:length]
        assert generation.stopped == ("eos" if end in tokens else "length")
    assert rows[0].stopped == "eos"
    assert all(end not in generation.tokens[:5] for generation in late.values())


def test_looking_at_tokens_seldom_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compression = tiny_model("gqa"), compress("H2O", "slide")

    def run(ends: tuple[int, ...]) -> dict[int, greedy.Generation]:
        return dict(generate(Session(model, compression, PROMPTS, STEPS), STEPS, ends))

    with patch(model):
        ends = (run(())[0].tokens[3],)
        often = run(ends)
        monkeypatch.setattr(greedy, "_steps_per_look", lambda tokens: 5)
        assert run(ends) == often


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
        session.cache.admit([0])
        prompt = torch.tensor([PROMPTS[2]])
        logits = [model(input_ids=prompt, past_key_values=session.cache).logits[0, -1]]
        logits += [session.step(torch.tensor([token, 1, 2]))[0] for token in (5, 6, 7)]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
