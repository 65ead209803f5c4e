"""CommonsenseQA: everyday knowledge, five options (https://arxiv.org/abs/1811.00937)."""

from typing import ClassVar

from scope.tasks.choices import ChoiceTask
from scope.tasks.sources import Hub, Item, Row


class CSQA(ChoiceTask):
    """Its questions are short, so the published prompts hold 4/3 as many."""

    name = "csqa"
    letters = "ABCDE"
    is_published = True
    sizes: ClassVar = {30: 40, 60: 80}
    hub = Hub("tau/commonsense_qa", None, "validation", "94630fe30dad47192a8546eb75f094926d47e155")
    gap = "\n"

    def item(self, row: Row) -> Item:
        question, choices = row["question"], row.get("choices")
        if choices is None:  # the form of the data set's own site; the hub's is flat
            question, choices = question["stem"], question["choices"]
            return Item(question, row["answerKey"], tuple(choice["text"] for choice in choices))
        return Item(question, row["answerKey"], tuple(choices["text"]))
