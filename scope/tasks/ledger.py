"""A running ledger: every line changes one account, and needs the last total of that account.

Accounts are used unequally often, so a total is needed after a few lines or after many, and every
total makes an older one worthless.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from scope.tasks.made import (
    MadeTask,
    Problem,
    lines_since,
    named_value,
    numbered_lines,
    plain,
)
from scope.tasks.task import Exam, Marks
from scope.tasks.words import draw_names

_QUESTION = re.compile(r"([0-9]{1,6})\. (.+): \? ([+-]) ([0-9]{1,9}) = \?")
_ANSWER = re.compile(r".+: -?[0-9]{1,12}")


@dataclass(frozen=True)
class _Level:
    """How many accounts, the largest amount, and whether something is ever taken away."""

    accounts: int
    largest: int
    spends: bool = False


_LEVELS = {"easy": _Level(6, 9), "medium": _Level(16, 20), "hard": _Level(32, 99, spends=True)}


class Ledger(MadeTask):
    """Every line is a question.

    It is right if its total is that of the books, or the model's own last total of that account
    changed rightly, so that one slip costs one line.
    """

    name = "ledger"
    instruction = (
        "Keep the books. Every account begins with 0, and each numbered line below adds an amount "
        "to one account or takes it away. Write all lines again, in their order, with the "
        "account's last total and its new total in place of the question marks, as in "
        "'7. fox: 40 + 5 = 45'. Leave no line out and write nothing else."
    )
    sizes: ClassVar = {30: 180, 60: 360}
    worked = 6

    def draw(self, rng: Random, k: int, level: str) -> Problem:
        chosen = _LEVELS[level]
        accounts = draw_names(rng, min(chosen.accounts, max(2, k // 3)), 1)
        often = [1 / (1 + place) for place in range(len(accounts))]
        totals = dict.fromkeys(accounts, 0)
        questions, answers, written = [], [], []
        for number in range(1, k + 1):
            [account] = rng.choices(accounts, often)
            before, amount = totals[account], rng.randrange(1, chosen.largest + 1)
            sign = "-" if chosen.spends and amount <= before and rng.random() < 0.5 else "+"
            totals[account] += amount if sign == "+" else -amount
            questions.append(f"{number}. {account}: ? {sign} {amount} = ?")
            answers.append(f"{account}: {totals[account]}")
            written.append(f"{number}. {account}: {before} {sign} {amount} = {totals[account]}")
        return Problem("\n".join(questions), "\n".join(written), questions, answers)

    def asks(self, question: str, answer: str) -> bool:
        return bool(_QUESTION.fullmatch(question) and _ANSWER.fullmatch(answer))

    def lines_back(self, exam: Exam) -> Sequence[int | None]:
        accounts = [_QUESTION.findall(question)[0][1] for question in exam.questions]
        return lines_since(accounts, [[account] for account in accounts])

    def mark(self, exam: Exam, pred: str) -> Marks:
        lines = numbered_lines(pred)
        own: dict[str, int] = {}
        answered, correct = [], []
        for question, answer in zip(exam.questions, exam.answers, strict=True):
            number, name, sign, amount = _QUESTION.findall(question)[0]
            name = plain(name)
            said = named_value(lines.get(int(number), ""))
            there = said is not None and said[0] == name
            right = {int(answer.rpartition(": ")[2]), own.get(name, 0) + int(sign + amount)}
            if there:
                own[name] = said[1]
            answered.append(there)
            correct.append(there and said[1] in right)
        return Marks(tuple(answered), tuple(answered), tuple(correct))
