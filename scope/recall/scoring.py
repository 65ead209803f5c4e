"""Scores generated recall answers by the record number they print."""

from scope.recall.task import SUM


def is_answer(text: str) -> bool:
    """Whether a gold answer has its fields, up to the sum."""
    return len(text.split()) > SUM


def answered(pred: str, answers: list[str]) -> list[bool]:
    """Whether each answer is there, up to its sum; the arguments are those of `score`."""
    gold = [answer.split() for answer in answers]
    sums = _printed_sums(pred, gold[0][0])
    return [fields[0] in sums for fields in gold]


def score(pred: str, answers: list[str]) -> list[bool]:
    """Whether the sum of each answer is right.

    pred: the generated text; it goes on from the first record number, which ends the prompt.
    answers: the gold answers, as built by ``scope.recall.build``.

    An answer is looked up by its record number, where that is printed first; nothing but its sum
    counts, and an answer that is missing or cut off is wrong.
    """
    gold = [answer.split() for answer in answers]
    sums = _printed_sums(pred, gold[0][0])
    return [sums.get(fields[0]) == fields[SUM] for fields in gold]


def _printed_sums(pred: str, first: str) -> dict[str, str]:
    """What stands in the sum's place after each word's first occurrence."""
    tokens = pred.split()
    if tokens[:1] != [first]:
        tokens.insert(0, first)
    sums: dict[str, str] = {}
    for key, total in zip(tokens, tokens[SUM:], strict=False):
        sums.setdefault(key, total)
    return sums
