"""A grid of runs: options that are lists stand for all their combinations."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from scope.errors import ScopeError


def combinations(options: Mapping[str, Any], whole: Collection[str]) -> Iterator[dict[str, Any]]:
    """Every choice of one value from each list, in the order of the file, the last varying fastest.

    Args:
        options: names and values.
        whole: names of options that take a list as one value.

    Raises:
        ScopeError: for a list of nothing.
    """
    lists = {
        name: value
        for name, value in options.items()
        if isinstance(value, list) and name not in whole
    }
    for name, values in lists.items():
        if not values:
            raise ScopeError(f"{name} is an empty list; give it a value or leave it out")
    for choice in product(*lists.values()):
        yield {**options, **dict(zip(lists, choice, strict=True))}


class Exclusions:
    """Labels of runs to leave out, as ``H2O+slide``; ``*`` and ``?`` stand for any text or letter.

    Args:
        names: from the file.

    Raises:
        ScopeError: if they are not a list of texts.
    """

    def __init__(self, names: Any) -> None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ScopeError("`exclude` must be a list of labels such as H2O+slide")
        self._unused = dict.fromkeys(names)
        self._names = names

    def __contains__(self, label: object) -> bool:
        matching = [name for name in self._names if fnmatchcase(str(label), name)]
        for name in matching:
            self._unused.pop(name, None)
        return bool(matching)

    def check_used(self) -> None:
        """See that each name has left something out.

        Raises:
            ScopeError: for one that has not, which is misspelt or in vain.
        """
        for name in self._unused:
            raise ScopeError(f"`exclude` names {name}, which is the label of none of the runs")
