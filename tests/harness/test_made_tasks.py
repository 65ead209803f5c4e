"""The tasks that the project makes itself: the true solution is right, and nothing else is."""

import json
import random
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import eval_gen
from scope.harness.cli import main
from scope.longgenbench.draw import main as draw
from scope.tasks.made import LEVELS, MadeTask, Problem
from scope.tasks.registry import TASKS, recognise
from tests.harness.running import arguments_of, read

MADE = [task for task in TASKS.values() if isinstance(task, MadeTask)]
ANY_LEVEL = pytest.mark.parametrize("level", LEVELS)
ANY_TASK = pytest.mark.parametrize("task", MADE, ids=lambda task: task.name)


class Exam(NamedTuple):
    prompt: str
    questions: list[str]
    answers: list[str]


def exam_of(problem: Problem) -> Exam:
    return Exam(problem.text, list(problem.questions), list(problem.answers))


@ANY_TASK
@ANY_LEVEL
def test_the_true_solution_is_right_and_a_part_of_it_in_part(task: MadeTask, level: str) -> None:
    for k in (1, 2, 9, task.questions(30)):
        problem = task.draw(random.Random(k), k, level)
        exam = exam_of(problem)
        assert len(exam.answers) == k
        task.check(exam)
        assert recognise(exam) is task
        for frame in ("{}", "Sure:\n\n{}\n\nDone.", "```\n{}\n```"):
            assert task.mark(exam, frame.format(problem.solution)).accuracy == 1
        assert task.mark(exam, "I cannot do this.").accuracy == 0
        assert task.mark(exam, problem.text).accuracy < 0.2

    lines = problem.solution.splitlines(keepends=True)
    shares = [
        task.mark(exam, "".join(lines[:end])).accuracy
        for end in range(0, len(lines) + 1, len(lines) // 4)
    ]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[3] < shares[4]
    half = task.mark(exam, "".join(lines[: len(lines) // 2]))
    assert not any(half.answered[-len(half.answered) // 3 :])


@pytest.mark.parametrize(
    ("task", "questions", "back"),
    [
        (
            "ledger",
            ["1. fox: ? + 1 = ?", "2. owl: ? + 1 = ?", "3. fox: ? - 1 = ?"],
            [None, None, 2],
        ),
        (
            "notes",
            ["4. a -> owl", "5. owl -> hen", "6. a -> elk", "7. hen -> cat"],
            [None, 1, 2, 2],
        ),
        ("dfs", ["3. back", "5. back", "6. back"], [1, 1, 5]),
    ],
)
def test_lines_back_is_to_where_the_name_was_written_last(
    task: str, questions: list[str], back: list[int | None]
) -> None:
    assert list(TASKS[task].lines_back(Exam("", questions, []))) == back


@ANY_TASK
@ANY_LEVEL
def test_every_row_is_another_and_the_same_at_every_time(task: MadeTask, level: str) -> None:
    rows = [json.dumps(task.row(6, level, seed, index)) for seed in (0, 1) for index in range(4)]
    assert len(set(rows)) == 8
    assert rows[5] == json.dumps(task.row(6, level, 1, 1))


def wrong(solution: str, line: str, new: str) -> str:
    assert solution.count(line) == 1
    return solution.replace(line, new)


def test_a_note_is_right_if_it_is_true() -> None:
    exam = Exam("", ["3. owl -> bee", "4. bee -> elk"], ["bee: 472", "elk: 472"])
    right = "2. fox: 472 -> owl: 472\n3. owl: 472 -> bee: 472\n4. bee: 472 → elk: 472"

    def marks(text: str) -> tuple[bool, ...]:
        return TASKS["notes"].mark(exam, text).correct

    assert marks(right) == marks("3. bee: 472\n4. Elk: **472**") == (True, True)
    assert marks(right.replace("-> bee: 472", "-> bee: 815")) == (False, True)
    assert marks(right.replace("3. owl: 472 -> bee", "3. owl: 472 -> ant")) == (False, True)
    assert marks(right.replace("elk: 472", "elk: ?")) == (True, False)
    # The model's own number after a slip, as in a loop, is none.
    assert marks(right.replace("472", "815")) == (False, False)


@ANY_LEVEL
def test_a_note_is_in_the_prompt_at_the_end_of_a_chain_only(level: str) -> None:
    problem = TASKS["notes"].draw(random.Random(4), 120, level)
    start, *lines = problem.text.splitlines()
    numbers = dict(part.split(": ") for part in start.removeprefix("Start: ").split(", "))
    older: dict[str, str] = {}
    for line in lines:
        old, name = re.fullmatch(r"\d+\. ([\w ]+) -> ([\w ]+)", line).groups()
        assert old in older | numbers
        assert name not in older | numbers
        older[name] = old
    loop = []
    for question, answer in zip(problem.questions, problem.answers, strict=True):
        name, number = answer.split(": ")
        assert older[name] in older
        origin = name
        while origin in older:
            origin = older[origin]
        assert numbers[origin] == number
        loop.append(f"{question.partition('.')[0]}. {name}: {numbers[min(numbers)]}")
    # One number for all names is right as often as it is drawn.
    assert len(set(numbers.values())) == {"easy": 6, "medium": 12, "hard": 24}[level]
    share = TASKS["notes"].mark(exam_of(problem), "\n".join(loop)).accuracy
    assert share == pytest.approx(1 / len(numbers), abs=0.1)


def test_a_slip_in_the_ledger_costs_one_line() -> None:
    changes = ("tea: ? + 5", "oil: ? + 2", "tea: ? + 3", "tea: ? - 1")
    questions = [f"{number}. {change} = ?" for number, change in enumerate(changes, start=1)]
    exam = Exam("", questions, ["tea: 5", "oil: 2", "tea: 8", "tea: 7"])
    ledger = TASKS["ledger"]

    def marks(text: str) -> tuple[bool, ...]:
        return ledger.mark(exam, text).correct

    assert marks("1. tea: 0 + 5 = 5\n2. oil: 0 + 2 = 2\n3. tea: 5 + 3 = 8\n4. tea: 8 - 1 = 7") == (
        (True,) * 4
    )
    assert marks("1. tea: 5\n2. oil: 2\n3. tea: 5 + 3 = 9\n4. tea: 9 - 1 = 8") == (
        (True, True, False, True)
    )
    assert marks("1. tea: 5\n3. tea: 8\n4. tea: 5 - 1 = 4") == (True, False, True, False)
    assert marks("1. oil: 5\n2. oil: 2") == (False, True, False, False)


@ANY_LEVEL
def test_a_walk_goes_back_to_where_it_came_from(level: str) -> None:
    problem = TASKS["dfs"].draw(random.Random(3), 30, level)
    head, *asked = problem.text.splitlines()
    same, *lines = problem.solution.splitlines()
    assert same == head
    path, answers = [head.removeprefix("Start: now at ")], []
    for line, question in zip(lines, asked, strict=True):
        way, place, origin, now = re.fullmatch(
            r"\d+\. (go|back): (\w+) <- (\w+), now at (\w+)", line
        ).groups()
        number = line.partition(".")[0]
        if way == "go":
            assert question == f"{number}. go: {place}"
            assert (origin, now) == (path[-1], place)
            assert place not in path
            path.append(place)
        else:
            assert question == f"{number}. back"
            assert (path.pop(), path[-1], path[-1]) == (place, origin, now)
            answers.append(now)
    assert (len(path), answers) == (1, list(problem.answers))
    assert len(answers) == 30


def test_a_slip_in_a_walk_costs_one_line() -> None:
    walk = (
        "1. go: owl <- fox, now at owl\n2. go: bee <- owl, now at bee\n"
        "3. back: bee <- owl, now at owl\n4. back: owl <- fox, now at fox"
    )
    exam = Exam("", ["3. back", "4. back"], ["owl", "fox"])

    def marks(text: str) -> tuple[bool, ...]:
        return TASKS["dfs"].mark(exam, text).correct

    assert marks(walk) == marks(walk.replace("<-", "←")) == (True, True)
    assert marks(wrong(walk, "bee <- owl, now at owl", "bee <- fox, now at fox")) == (False, True)
    # The model's own way counts where it goes on from where the model has been.
    own = walk.replace("fox", "elk")
    assert marks(own) == (True, True)
    assert marks(wrong(own, "back: owl <- elk", "back: bee <- elk")) == (True, False)
    # But not a way on from where it was not, nor the same name before every step.
    leap = wrong(walk, "2. go: bee <- owl", "2. go: bee <- fox")
    leap = wrong(leap, "bee <- owl, now at owl", "bee <- fox, now at fox")
    assert marks(leap) == (False, True)
    always = re.sub("<- .+", "<- elk, now at elk", walk)
    assert marks(always) == (False, False)


def test_countdown_ends_at_its_target_and_no_sum_is_wrong() -> None:
    for level in LEVELS:
        problem = TASKS["countdown"].draw(random.Random(2), 16, level)
        marked = TASKS["countdown"].mark(exam_of(problem), "").correct
        assert len(marked) == sum(len(answer.splitlines()) for answer in problem.answers)
        for question, answer in zip(problem.questions, problem.answers, strict=True):
            shown, target = re.fullmatch(r"Problem \d+: (\[.+\]), target (\d+)", question).groups()
            above: list[list[int]] = []  # the numbers at each depth
            for line in answer.splitlines():
                indent, before, a, sign, b, c, end = re.fullmatch(
                    r"( *)(\[.+\]): (-?\d+) ([+*-]) (-?\d+) = (-?\d+), (.+)", line
                ).groups()
                a, b, c = int(a), int(b), int(c)
                assert c == {"+": a + b, "-": a - b, "*": a * b}[sign]
                depth = len(indent) // 2
                assert json.loads(before) == (above[depth - 1] if depth else json.loads(shown))
                others = json.loads(before)
                others.remove(a)
                others.remove(b)
                del above[depth:]
                above.append([c, *others])
                assert end == (
                    f"left {[c, *others]}" if others else "yes" if c == int(target) else "no"
                )
            assert answer.endswith(f"= {target}, yes")
            assert answer.count("yes") == 1


def test_a_wrong_line_ends_the_right_prefix() -> None:
    countdown = TASKS["countdown"]
    problem = countdown.draw(random.Random(1), 3, "easy")
    exam = exam_of(problem)
    first = problem.answers[0].splitlines()
    text = wrong(problem.solution, f"{problem.questions[0]}\n{first[0]}", problem.questions[0])
    marks = countdown.mark(exam, text)
    assert marks.correct[: len(first)] == (False,) * len(first)
    assert all(marks.correct[len(first) :])  # the other problems are marked on their own


def test_the_way_back_is_compared_with_the_models_own_way_out() -> None:
    answers = ["back[d] = c", "back[c] = b", "back[b] = a"]
    exam = Exam("", ["4. back", "5. back", "6. back"], answers)
    out = "Out from a to d\n1. a -> b, back[b] = a\n2. b -> c, back[c] = b\n3. c -> d, back[d] = c"
    right = f"{out}\nBack from d to a\n4. back[d] = c\n5. back[c] = b\n6. back[b] = a\n"

    def marks(text: str) -> tuple[bool, ...]:
        return TASKS["paths"].mark(exam, text).correct

    assert marks(right) == (True, True, True)
    assert marks(wrong(right, "5. back[c] = b", "5. back[c] = a")) == (True, False, False)
    assert marks(re.sub(r"\bb\b", "x", right)) == (True, True, True)
    assert marks(wrong(right, "5. back[c] = b", "5. `back[c]` = **b**")) == (True, True, True)
    assert marks(re.sub(r"\b[a-d]\b", "?", right)) == (False, False, False)
    short = (
        "Out\n1. a -> b, back[b] = a\n2. b -> d, back[d] = b\nBack\n3. back[d] = b\n4. back[b] = a"
    )
    assert marks(short) == (True, True, False)
    # A way out that is broken, or goes round, is none from there on; and no heading is no way back.
    assert marks(wrong(right, "2. b -> c", "2. x -> c")) == (False, False, False)
    loop = "Out\n1. a -> b, back[b] = a\n2. b -> a, back[a] = b\n3. a -> b, back[b] = a\n"
    assert marks(f"{loop}Back\n4. back[b] = a\n5. back[a] = b\n")[1:] == (False, False)
    assert marks(wrong(right, "Back from d to a\n", "")) == (False, False, False)


def test_the_way_back_is_not_in_the_roads() -> None:
    for level in LEVELS:
        problem = TASKS["paths"].draw(random.Random(1), 10, level)
        roads = [tuple(road.split(" -> ")) for road in problem.text.splitlines() if "->" in road]
        assert len({here for here, _ in roads}) == len(roads)
        head, *out = problem.solution.splitlines()[:11]
        turn, *back = problem.solution.splitlines()[11:]
        steps = [tuple(re.split(" -> |, ", line.partition(". ")[2])) for line in out]
        assert all(before[1] == after[0] for before, after in pairwise(steps))
        assert {step[:2] for step in steps} <= set(roads)
        assert all(undone == f"back[{there}] = {here}" for here, there, undone in steps)
        assert [line.partition(". ")[2] for line in back] == [step[2] for step in steps[::-1]]
        assert [line.partition(". ")[2] for line in back] == list(problem.answers)
        start, goal = steps[0][0], steps[-1][1]
        assert (head, turn) == (f"Out from {start} to {goal}", f"Back from {goal} to {start}")
        into = [there for _, there in roads]
        assert all(into.count(there) > 1 for _, there, _ in steps)


@pytest.mark.parametrize("name", ["dfs", "paths", "countdown"])
@pytest.mark.parametrize(
    "vary",
    [
        str.upper,
        lambda text: re.sub(" ?(<-|->|=) ?", r"\1", text),
        lambda text: re.sub(r"\b(back|go|yes|no)\b", r"**\1**", text),
    ],
    ids=["capitals", "tight", "bold words"],
)
def test_a_walk_a_way_and_a_search_may_look_otherwise(
    name: str, vary: Callable[[str], str]
) -> None:
    problem = TASKS[name].draw(random.Random(3), 6, "easy")
    assert TASKS[name].mark(exam_of(problem), vary(problem.solution)).accuracy == 1


@ANY_TASK
def test_markdown_and_odd_text_are_read(task: MadeTask) -> None:
    problem = task.draw(random.Random(2), 6, "easy")
    exam = exam_of(problem)
    bold = re.sub(r"^(\d+\.)", r"**\1**", problem.solution, flags=re.MULTILINE)
    assert task.mark(exam, bold).accuracy == 1
    pieces = [
        "1. ",
        "2. ",
        "Problem 1",
        "\n",
        "= ",
        "3 + 5",
        "path: ",
        " -> ",
        "fox",
        ", yes",
        ":",
        " <- ",
        "[3, 5]: ",
        "Back\n",
        "back[fox]",
    ]
    rng = random.Random(0)
    for _ in range(300):
        marks = task.mark(exam, "".join(rng.choices(pieces, k=40)))
        assert len(marks.correct) == len(marks.answered) >= 6
    for piece in (*pieces, problem.solution + "\n"):
        task.mark(exam, piece * (1_000_000 // len(piece)))


@ANY_TASK
def test_a_drawn_file_is_run_and_scored(
    task: MadeTask, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [task.name, "--k", "1", "--num_prompts", "2", "--out", str(tmp_path)]
    assert draw(arguments) == 0
    data = tmp_path / f"{task.name}_1.jsonl"
    model = shutil.copytree(model_folder, tmp_path / "Tiny-Llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    options = {"instruction_file": None, "max_new_tokens": 4}
    assert main(arguments_of(model, data, tmp_path / "out", **options)) == 0
    result = tmp_path / "out" / "tiny-llama_24" / task.name / "H2O.json"
    records = read(result)
    assert records[0]["prompt"].startswith(f"{task.instruction}\n\nExample input:")
    drawn = read(data)
    assert [record["answers"] for record in records] == [row["answers"] for row in drawn]
    assert eval_gen.main(["--results_dir", str(tmp_path / "out")]) == 0
    assert task.name in capsys.readouterr().out


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in {
        ("notes", "--k", "0"): "error: --k 0: at least 1 was expected",
        ("notes", "--k", "5", "--num_prompts", "0"): "error: --num_prompts 0: at least 1",
        ("notes", "--k", "999"): "error: 1011 names are needed, and there are 2",
    }.items():
        assert draw([*arguments, "--out", str(tmp_path)]) == 2
        assert told in capsys.readouterr().err
