"""Numbered questions with options, answered by a letter."""

from typing import ClassVar

from scope.errors import ScopeError
from scope.tasks import upstream
from scope.tasks.answers import hint_at_choice, read_choice, read_options
from scope.tasks.numbered import NumberedTask
from scope.tasks.sources import Item


class ChoiceTask(NumberedTask):
    """Base of such data sets: ``letters`` are those that a gold answer may be."""

    letters: ClassVar[str]
    instruction = (
        "Work through all the multiple-choice questions that follow the examples, one after the "
        "other and in their order. Begin each solution with its number, as in 'Answer_1:', "
        "explain the choice briefly, and end it with 'The answer is' and the letter in "
        "parentheses. Do not copy the questions, and leave none out."
    )

    def has_gold(self, item: Item) -> bool:
        return item.answer in tuple(self.letters)

    def gold(self, answer: str) -> str:
        letter = answer.strip().upper()
        if letter not in tuple(self.letters):
            raise ScopeError(
                f"the gold answer {answer[-40:]!r} is none of the letters {self.letters[0]} to "
                f"{self.letters[-1]}"
            )
        return letter

    def said(self, answer: str, question: str) -> str | None:
        return read_choice(answer, read_options(question))

    def hinted(self, answer: str, question: str) -> str | None:
        return hint_at_choice(answer, read_options(question))

    def upstream_gold(self, answer: str) -> str:
        return answer

    def upstream_said(self, text: str) -> list[str]:
        return upstream.read_choices(text)
