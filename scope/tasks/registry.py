"""Every data set by its name, in the order in which they are run."""

from scope.errors import ScopeError
from scope.tasks.aime import AIME24, AIME25
from scope.tasks.countdown import Countdown
from scope.tasks.csqa import CSQA
from scope.tasks.dfs import DepthFirst
from scope.tasks.gsm8k import GSM8K
from scope.tasks.ledger import Ledger
from scope.tasks.math500 import Math500
from scope.tasks.mmlu import MMLU
from scope.tasks.notes import Notes
from scope.tasks.paths import Paths
from scope.tasks.recall import Recall
from scope.tasks.task import Exam, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(GSM8K(), MMLU(), CSQA()),
        *(Notes(), Ledger(), DepthFirst(), Countdown(), Paths()),
        Recall(),
        *(AIME24(), AIME25(), Math500()),
    )
}


def find_task(name: str) -> Task:
    """The data set of that name.

    Raises:
        ScopeError: there is none, with the known names.
    """
    if name not in TASKS:
        raise ScopeError(f"unknown dataset {name!r}; expected {', '.join(TASKS)}")
    return TASKS[name]


def recognise(exam: Exam) -> Task:
    """The first data set that can mark this, for results whose folder names none.

    Raises:
        ScopeError: none can.
    """
    for task in TASKS.values():
        try:
            task.check(exam)
        except ScopeError:
            continue
        return task
    raise ScopeError(f"not answers as any data set has them; known are {', '.join(TASKS)}")


def published_names() -> list[str]:
    """The data sets that the original has."""
    return [name for name, task in TASKS.items() if task.is_published]
