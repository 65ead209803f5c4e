"""GSM8K: grade-school arithmetic, answered by a number (https://arxiv.org/abs/2110.14168)."""

from fractions import Fraction

from scope.errors import ScopeError
from scope.tasks import upstream
from scope.tasks.answers import hint_at_number, read_number
from scope.tasks.numbered import NumberedTask
from scope.tasks.sources import Hub, Item, Row


class GSM8K(NumberedTask):
    """A gold answer is a worked solution that ends in ``#### <number>``."""

    name = "gsm8k"
    instruction = (
        "Solve all the questions that follow the examples, one after the other and in their order. "
        "Begin each solution with its number, as in 'Answer_1:', show the steps of the "
        "calculation, and end it with 'The answer is' and the number. Do not copy the questions, "
        "and leave none out."
    )
    is_published = True
    hub = Hub("openai/gsm8k", "main", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee")

    def item(self, row: Row) -> Item:
        return Item(row["question"], row["answer"])

    def has_gold(self, item: Item) -> bool:
        return "####" in item.answer

    def gold(self, answer: str) -> Fraction:
        number = read_number(answer.rpartition("####")[2]) if "####" in answer else None
        if number is None:
            raise ScopeError(f"the gold answer {answer[-40:]!r} has no number after '####'")
        return number

    def said(self, answer: str, question: str) -> Fraction | None:
        return read_number(answer)

    def hinted(self, answer: str, question: str) -> Fraction | None:
        return hint_at_number(answer)

    def upstream_gold(self, answer: str) -> str | None:
        return upstream.read_gold_number(answer)

    def upstream_said(self, text: str) -> list[str]:
        return upstream.read_numbers(text)
