"""What is put before a LongGenBench prompt, and how the two are joined."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope.errors import ScopeError
from scope.tasks.registry import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_STYLES = ("plain", "chat", "upstream")


def load(path: Path | None = None) -> dict[str, str]:
    """The instruction for each data set, from a JSON object; None takes our own wording.

    Raises:
        ScopeError: ``path`` cannot be read or is not an object of texts.
    """
    if path is None:
        return {name: task.instruction for name, task in TASKS.items()}
    try:
        instructions: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScopeError(f"--instruction_file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ScopeError(f"--instruction_file {path}: not JSON ({error})") from None
    if not isinstance(instructions, dict) or not all(
        isinstance(text, str) for text in instructions.values()
    ):
        raise ScopeError(
            f"--instruction_file {path}: a JSON object from data set to text was expected"
        )
    return instructions


def render_prompt(
    instruction: str,
    prompt: str,
    style: str = "plain",
    *,
    model_path: str = "",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> str:
    """The full text for the model.

    Args:
        instruction: one of the texts that ``load`` returns.
        prompt: the data file's ``prompt``.
        style: ``plain`` puts a blank line between the two; ``chat`` makes them one user message of
            the tokenizer's chat template (tokenize it with ``add_special_tokens=False``, since the
            template writes the special tokens); ``upstream`` is the original's plain-text wrapper,
            which depends on the model's name.
        model_path: read by ``upstream`` only.
        tokenizer: read by ``chat`` only.

    Raises:
        ScopeError: unknown style, or ``chat`` for a tokenizer without a chat template or with a
            broken one.
    """
    plain = f"{instruction}\n\n{prompt}" if instruction else prompt
    if style == "plain":
        return plain
    if style == "chat":
        if tokenizer is None or tokenizer.chat_template is None:
            raise ScopeError("this model's tokenizer has no chat template; use the plain prompt")
        message = [{"role": "user", "content": plain}]
        try:
            return tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program that came with the model
            reason = " ".join(str(error).split())
            raise ScopeError(
                f"the chat template of {tokenizer.name_or_path} fails ({reason}); mend it there, "
                "or use --prompt_style plain"
            ) from error
    if style == "upstream":
        name = model_path.lower()
        wrapped = f"<<SYS>>\n {instruction} \n<</SYS>>\n\n{prompt}"
        if "llama-3" in name:
            return wrapped
        return f"[INST] {wrapped} [/INST]" if "llama2" in name else plain
    raise ScopeError(f"unknown prompt style '{style}'; expected one of {', '.join(PROMPT_STYLES)}")
