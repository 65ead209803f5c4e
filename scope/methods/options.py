"""A method's fields are its options: declared once, beside the code that reads them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scope.errors import ScopeError

_HELP, _FILE = "help", "file"


def option(default: Any, help_text: str, file: Callable[[str], Path] | None = None) -> Any:
    """A field of a method that a user may set.

    Args:
        default: its value where the user leaves it open.
        help_text: what it is, for the command line and docs/methods.md.
        file: finds the file that a value names, whose content is then a part of the configuration.
    """
    return dataclasses.field(default=default, metadata={_HELP: help_text, _FILE: file})


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: of the field.
        kind: int, float, bool or str, or the allowed values.
        default: where the user leaves it open; None where the method finds it.
        help: what it is.
        file: finds the file that a value names, where it names one.
    """

    name: str
    kind: type | tuple[Any, ...]
    default: Any
    help: str
    file: Callable[[str], Path] | None = None

    def check(self, value: Any) -> Any:
        """A value of the option's kind.

        Raises:
            ScopeError: for any other.
        """
        if value is None and self.default is None:
            return None
        if isinstance(self.kind, tuple):
            if value in self.kind:
                return value
            expected = f"one of {', '.join(map(str, self.kind))}"
        else:
            if self.kind is int and isinstance(value, Integral) and not isinstance(value, bool):
                return int(value)
            if type(value) is self.kind or (self.kind is float and type(value) is int):
                return value
            expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(
                self.kind, "a text"
            )
        raise ScopeError(f"{self.name} is {value!r}; expected {expected}")


def _options_of(method: type) -> Mapping[str, Option]:
    """The options that a method declares, by name."""
    hints = get_type_hints(method)
    return {
        field.name: Option(
            name=field.name,
            kind=_kind(hints[field.name]),
            default=field.default,
            help=field.metadata[_HELP],
            file=field.metadata[_FILE],
        )
        for field in dataclasses.fields(method)
        if _HELP in field.metadata
    }


# Looked up once: a grid asks for those of every method for each of its runs.
options_of: Callable[[type], Mapping[str, Option]] = cache(_options_of)


def _kind(annotation: Any) -> type | tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    kinds = [argument for argument in get_args(annotation) if argument is not NoneType]
    return _kind(kinds[0]) if kinds else annotation
