"""The tolerant reader: every accepted form is found, and no text breaks it or slows it down."""

import random
import re
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope.evaluation.indexed import repetition
from scope.evaluation.results import Record
from scope.tasks.answers import (
    hint_at_choice,
    hint_at_number,
    read_choice,
    read_number,
    read_options,
    split_answers,
)
from scope.tasks.registry import TASKS
from scope.tasks.task import Marks

OPTIONS = {"A": "race track", "B": "a bank", "C": "The old town", "D": "new", "E": "new york city"}

MEANINGFUL = re.compile(r"answer|question|boxed", re.IGNORECASE)
noise = st.text(max_size=200).filter(lambda text: not MEANINGFUL.search(text))

number_frames = st.sampled_from(
    [
        "{}",
        "{}.",
        "${}",
        "${}.",
        "**{}**",
        "**{}**.",
        "**${}**.",
        "\\boxed{{{}}}.",
        "$\\boxed{{{}}}$",
        "{}%.",
        "{}km",
        "\\${}.",
        "({}).",
        "{} dollars.",
        "{} meters per second.",
    ]
)
choice_frames = st.sampled_from(
    [
        "({0})",
        "({0}).",
        "{0}",
        "{0}.",
        "{0})",
        "**{0}**",
        "**({0})**.",
        "\\boxed{{{0}}}",
        "{1}",
        "{1}.",
        "**{1}**",
        "({0}) {1}.",
        "{0}) {1}",
        '"{1}," because it fits.',
    ]
)


@st.composite
def rendered_numbers(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A decimal in one of the accepted forms, and its exact value."""
    whole = draw(st.integers(0, 10**12))
    decimals = draw(st.from_regex(r"(\.[0-9]{1,6})?", fullmatch=True))
    sign = draw(st.sampled_from(["", "-", "−"]))
    digits = f"{whole:,}" if draw(st.booleans()) else str(whole)
    value = Fraction(f"{whole}{decimals}") * (-1 if sign else 1)
    return draw(number_frames).format(f"{sign}{digits}{decimals}"), value


@st.composite
def rendered_choices(draw: st.DrawFn) -> tuple[str, str]:
    letter = draw(st.sampled_from(sorted(OPTIONS)))
    text = draw(st.sampled_from([OPTIONS[letter], OPTIONS[letter].upper()]))
    return draw(choice_frames).format(letter, text), letter


def transcript(said: list[str], order: list[int], noises: list[str], heading: str) -> str:
    """Answers in any order, numbered from 1, with noise before and after each statement."""
    parts = []
    for place, number in enumerate(order):
        before, after = noises[2 * place], noises[2 * place + 1]
        parts.append(
            f"{heading.format(number + 1)}\n{before}\nThe answer is {said[number]}\n{after}\n"
        )
    return "".join(parts)


headings = st.sampled_from(
    ["Answer_{}:", "**Answer_{}:**", "Answer {}:", "### Answer_{} :", "Answer_{}"]
)


@given(st.lists(rendered_numbers(), min_size=1, max_size=6), headings, st.data())
def test_numbers_are_found_by_their_number(
    numbers: list[tuple[str, Fraction]], heading: str, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(numbers))))
    noises = data.draw(st.lists(noise, min_size=2 * len(order), max_size=2 * len(order)))
    pieces = split_answers(transcript([said for said, _ in numbers], order, noises, heading))
    assert [read_number(pieces[i + 1]) for i in range(len(numbers))] == [v for _, v in numbers]


@given(st.lists(rendered_choices(), min_size=1, max_size=6), headings, st.data())
def test_choices_are_found_by_their_number(
    choices: list[tuple[str, str]], heading: str, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(choices))))
    noises = data.draw(st.lists(noise, min_size=2 * len(order), max_size=2 * len(order)))
    pieces = split_answers(transcript([said for said, _ in choices], order, noises, heading))
    assert [read_choice(pieces[i + 1], OPTIONS) for i in range(len(choices))] == [
        letter for _, letter in choices
    ]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The answer is 18 - 4 = 14 dollars.", 14),
        ("So the answer is:\n\n$1,234.50", Fraction("1234.5")),
        ("The answer is 3.0.", 3),
        ("The answer is .5", Fraction(1, 2)),
        ("The answer is 2/3.", Fraction(2, 3)),
        ("The answer is 5. Wait, that is wrong.\nThe answer is 7.", 7),
        ("Answer: 12 apples", 12),
        ("8", 8),
        ("-$6,667", -6667),
        ("Adding up gives \\boxed{1{,}000} in all.", 1000),
        ("She has 16 - 3 = 13 eggs.\nThen she sells 2.", None),
        ("The answer is 2:30 pm.", None),
        ("The answer is 4 and 6.", None),
        ("The answer is 78, 60 + x.", None),
        ("The answer is 138 + x.", None),
        ("The answer is 1/0.", None),
        ("The answer is unknown.", None),
        ("The answer is " + "9" * 5000, None),
        ("", None),
    ],
)
def test_numbers(answer: str, value: object) -> None:
    assert read_number(answer) == value


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is (b).", "B"),
        ("The answer is: C", "C"),
        ("The answer is bank.", "B"),
        ("The answer is the old town, of course.", "C"),
        ("The answer is new york city.", "E"),
        ("The answer is new.", "D"),
        ("The answer is newer.", None),
        ("The answer is A because it is fast.", "A"),
        ("(B) a bank", "B"),
        ("The answer is (A). The answer is (B).", "B"),
        ("The answer is not listed.", None),
        ("Both (A) and (B) fit.\nI cannot decide.", None),
    ],
)
def test_choices(answer: str, letter: str | None) -> None:
    assert read_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("She has 16 - 3 = 13 eggs.\nThen she sells 2.", 2),
        ("5 boxes of 12.\n5 * 12 = **$1,060.50**, so she pays that.", Fraction("1060.5")),
        ("The answer is 7.\nThere are 9 left over.", 7),
        ("It is -4 outside.\nCold!", -4),
        ("At 3:30 on\nthe v2 route", 3),
        ("Nobody\nknows.", None),
    ],
)
def test_numbers_without_the_phrase(answer: str, value: object) -> None:
    assert hint_at_number(answer) == value


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Both (A) and (B) fit.\nI cannot decide.", "B"),
        ("A bank keeps money.\nSo I choose B.", "B"),
        ("A bank keeps money.\nNobody knows.", None),
        ("It holds coins.\nB) a bank\nThat is all.", "B"),
        ("It holds coins.\n**C**\n", "C"),
        ("The answer is (D).\nNot (A).", "D"),
        ("Vitamin J) helps.\nSo it does.", None),
    ],
)
def test_choices_without_the_phrase(answer: str, letter: str | None) -> None:
    assert hint_at_choice(answer, OPTIONS) == letter


def test_which_piece_belongs_to_a_number() -> None:
    text = (
        "Answer_1: a\nAnswer_2: b\nAnswer_2: c\nAnswer_2:\nQuestion_3: d\nAnswer_3: e\nAnswer_1: f"
    )
    assert split_answers(text) == {1: "a", 2: "c", 3: "e"}
    assert split_answers("In Answer_1 we saw that the answer 5 is wrong") == {}


def test_options_begin_with_a_line() -> None:
    assert read_options("Is (A) here?\n(A) yes (B) no (C) see (B)") == {
        "A": "yes",
        "B": "no",
        "C": "see (B)",
    }
    assert read_options("(A) 0(B) 4(C) 2(D) 6") == {"A": "0", "B": "4", "C": "2", "D": "6"}
    assert read_options("How many?") == {}


def mark(pred: str, kind: str) -> Marks:
    """A prompt with 30 questions, asked from number 9 on."""
    answers = ("so it is\n#### 1,000",) * 30 if kind == "number" else ("B",) * 30
    question = "Where?\n(A) race track (B) bank"
    exam = Record(1, "Following Question: \nQuestion_9:\n", (question,) * 30, answers, pred)
    task = TASKS["gsm8k" if kind == "number" else "csqa"]
    strict, lenient = task.mark(exam, pred), task.mark_leniently(exam, pred)
    # What can be read without leniency is read the same with it.
    assert lenient is not None
    assert all(a or not b for a, b in zip(lenient.correct, strict.correct, strict=True))
    assert all(a or not b for a, b in zip(lenient.answered, strict.answered, strict=True))
    return strict


@given(
    st.text()
    | st.lists(st.sampled_from(["Answer_9:", "answer is ", "(B", ")", "1", "\n"])).map("".join)
)
def test_no_text_raises(text: str) -> None:
    for kind in ("number", "choice"):
        marks = mark(text, kind)
        assert len(marks.correct) == 30
        assert all(a or not c for a, c in zip(marks.answered, marks.correct, strict=True))
    assert 0 <= repetition(text) < 1


def shuffled_words() -> str:
    words = ["Answer_9:", "answer is", "(B)", "(", "1", "1,", "\\boxed{", "**", "$", "\n", "=", " "]
    return " ".join(random.Random(0).choices(words, k=300_000))


LOOPS: dict[str, Callable[[], str]] = {
    "headings": lambda: "Answer_9: ",
    "answers": lambda: "Answer_9: The answer is (B) 1. ",
    "statements": lambda: "answer is ",
    "open statements": lambda: "answer is (",
    "one heading, statements": lambda: "Answer_9:" + "answer is ( " * 90_000,
    "digits": lambda: "Answer_9: answer is " + "9" * 1_000_000,
    "digit groups": lambda: "Answer_9: answer is " + "999," * 250_000,
    "stars": lambda: "Answer_9" + "*" * 1_000_000,
    "spaces": lambda: "Answer_9" + " " * 1_000_000,
    "line ends": lambda: "Answer_9:" + "\n" * 1_000_000,
    "boxes": lambda: "Answer_9: \\boxed{",
    "words": lambda: "the facial nerve also carries ",
    "shuffled words": shuffled_words,
}


@pytest.mark.parametrize("kind", ["number", "choice"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_megabyte_takes_under_a_second(loop: str, kind: str) -> None:
    text = LOOPS[loop]()
    text = (text * (1_000_000 // len(text) + 1))[:1_000_000]
    start = time.process_time()
    mark(text, kind)
    repetition(text)
    assert time.process_time() - start < 1
