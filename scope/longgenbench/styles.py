"""How a data set's questions become prompts: a style, and the demonstrations that go with it.

``fixed`` and ``upstream`` write GSM8K and CSQA alike and differ in the demonstrations only; of
MMLU ``upstream`` repeats the faults of the published files (`scope.tasks.mmlu`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scope.errors import ScopeError
from scope.tasks.numbered import NumberedTask
from scope.tasks.sources import Item

STYLES = ("fixed", "upstream")

# From a subject and its items to the prompt and its list of questions.
Writer = Callable[[str, Sequence[Item]], tuple[str, list[str]]]

_DEMONSTRATIONS = Path(__file__).with_name("demonstrations")


def load(style: str, task: NumberedTask, prompt_path: Path | None) -> Writer:
    """The style of that name with its demonstrations: ``prompt_path``'s, or else our own.

    Raises:
        ScopeError: the demonstrations are missing or not in the expected form.
    """
    if style == "upstream" and prompt_path is None:
        raise ScopeError(
            "--style upstream needs --prompt_path: the published demonstrations "
            "(text for gsm8k and csqa, JSON by subject for mmlu)"
        )
    path = prompt_path or _DEMONSTRATIONS / f"{task.name}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScopeError(f"cannot read the demonstrations {path}: {error}") from None
    try:
        task.check_demonstrations(text, upstream=style == "upstream")
    except ScopeError as error:
        raise ScopeError(f"--prompt_path {path}: {error}") from None
    write = task.write_upstream if style == "upstream" else task.write
    return partial(write, text.strip())
