"""The examples keep the rules that the task states, for every size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scope.errors import ScopeError
from scope.recall.task import DIGIT, REFERENCE, RecallTask
from scope.recall.vocabulary import INDICES, LETTERS, NONE, TOKEN_ID, VOCABULARY, WORDS

TASKS = st.builds(
    RecallTask,
    records=st.integers(1, INDICES),
    filler=st.integers(0, 6),
    hubs=st.integers(0, INDICES // 2),
)


def words(tokens: np.ndarray) -> list[str]:
    return [VOCABULARY[token] for token in tokens]


@settings(max_examples=60)
@given(TASKS, st.integers(0, 2**32))
def test_examples_keep_the_rules(task: RecallTask, seed: int) -> None:
    prompts, answers = task.sample(np.random.default_rng(seed), batch=3)
    assert prompts.shape == (3, task.prompt_length)
    assert answers.shape == (3, task.records, task.answer_fields)
    for prompt_tokens, answer_tokens in zip(prompts, answers, strict=True):
        prompt, lines = words(prompt_tokens), [words(line) for line in answer_tokens]
        first = int(lines[0][0][1:])
        assert prompt[0] == "<bos>"
        assert prompt[-2:] == ["RECALL", lines[0][0]]
        records = [prompt[i : i + 4] for i in range(1, len(prompt) - 2, 4)]
        assert sorted(records) == sorted(line[:4] for line in lines)

        sums: dict[str, int] = {}
        for i, (key, word, digit, reference, total, *filler) in enumerate(lines):
            assert key == f"K{(first + i) % INDICES}"
            assert filler == list(word[: task.filler])
            referred = 0 if reference == NONE else sums[reference.replace("X", "K")]
            assert int(total) == (int(digit) + referred) % 10
            sums[key] = int(total)


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_hubs_are_few_and_early_and_used_at_once(hubs: int, seed: int) -> None:
    sources = RecallTask(records=40, hubs=hubs)._draw_sources(np.random.default_rng(seed), 20)
    for row in sources:
        used = sorted(set(row) - {-1})
        assert len(used) == hubs
        assert used[-1] < 2 * hubs
        assert all(row[hub + 1] == hub for hub in used)


@pytest.mark.parametrize("hubs", [0, 4])
def test_seven_records_of_ten_refer(hubs: int) -> None:
    sources = RecallTask(records=64, hubs=hubs)._draw_sources(np.random.default_rng(0), 500)
    assert (sources[:, 16:] >= 0).mean() == pytest.approx(0.7, abs=0.01)


def test_without_hubs_any_earlier_answer_is_referred_to() -> None:
    sources = RecallTask(records=12, hubs=0)._draw_sources(np.random.default_rng(0), 2000)
    assert set(sources[:, 11]) == {-1, *range(11)}


def test_addends_limit_the_digits_of_records_that_refer_alone() -> None:
    _, answers = RecallTask(addends=1).sample(np.random.default_rng(0), 50)
    refers = answers[:, :, REFERENCE] != TOKEN_ID[NONE]
    digits = answers[:, :, DIGIT] - TOKEN_ID["0"]
    assert set(digits[refers]) == {0}
    assert set(digits[~refers]) == set(range(10))


def test_every_index_begins_some_prompt_and_orders_differ() -> None:
    prompts, answers = RecallTask(records=8).sample(np.random.default_rng(0), 2000)
    assert len(set(answers[:, 0, 0])) == INDICES
    assert len(set(answers[:, 0, 1])) == len(WORDS)
    first_place = (prompts[:, 1::4][:, :8] == answers[:, :1, 0]).argmax(axis=1)
    assert set(first_place) == set(range(8))


def test_the_same_seed_gives_the_same_examples() -> None:
    one, two, other = (RecallTask().sample(np.random.default_rng(seed), 2) for seed in (3, 3, 4))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_the_default_size_is_the_documented_one() -> None:
    assert (RecallTask().prompt_length, RecallTask().answer_length) == (131, 352)


def test_spelling_never_repeats_a_letter() -> None:
    assert len(set(WORDS)) == 64
    assert all(len(word) == len(set(word)) == 6 and set(word) <= set(LETTERS) for word in WORDS)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"records": 65}, "recall records must be 1 to 64, not 65"),
        ({"records": 0}, "recall records must be 1 to 64, not 0"),
        ({"filler": 7}, "recall filler must be 0 to 6, not 7"),
        ({"hubs": -1}, "recall hubs must be 0 to 32, not -1"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ScopeError, match=f"^{message}$"):
        RecallTask(**sizes)
