"""What a result is compared with."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from scope.errors import ScopeError
from scope.evaluation.results import (
    DatasetResult,
    ResultFolder,
    find_result_folders,
    read_dataset,
)

Baseline = Callable[[DatasetResult], DatasetResult | None]

FULL = "full"


def no_baseline(result: DatasetResult) -> None:
    """Nothing is compared."""


def find_baseline(named: str, folders: Iterable[ResultFolder]) -> Baseline:
    """The results that ``named`` stands for.

    Args:
        named: a result folder, for all results on its data sets; or `FULL` or the name of a
            configuration among ``folders``, for results of the same model, data set and prompts.
        folders: the results that are to be compared.

    Raises:
        ScopeError: it is none of these, or a folder above several, or one that cannot be read.
    """
    if named != FULL and Path(named).is_dir():
        return _folder(Path(named))
    return _configuration(named, folders)


def _folder(path: Path) -> Baseline:
    folders = find_result_folders(path)
    if len(folders) > 1:
        raise ScopeError(f"--baseline {path} holds {len(folders)} result folders; name one of them")
    found = {dataset: read_dataset(folders[0], dataset) for dataset in folders[0].files}
    return lambda result: found.get(result.dataset)


def _configuration(name: str, folders: Iterable[ResultFolder]) -> Baseline:
    """Of several, that of the result's own fidelity, W and C, as far as there is one.

    A result that has no W is not compared where there are several.
    """
    results = []
    for folder in folders:
        for dataset in folder.files:
            with suppress(ScopeError):  # told when the folder is scored
                results.append(read_dataset(folder, dataset))
    found = [one for one in results if (one.is_full_cache if name == FULL else one.name == name)]
    if not found and name == FULL:
        raise ScopeError("--baseline full: no ALLKV+None is among the results; run it, or name one")
    if not found:
        names = ", ".join(sorted({one.name for one in results}))
        raise ScopeError(f"--baseline {name} is no folder and none of the results: {names}")

    def matching(result: DatasetResult) -> DatasetResult | None:
        asked = {record.task for record in result.records}
        candidates = [
            one
            for one in found
            if (one.dataset, one.model) == (result.dataset, result.model)
            and not asked.isdisjoint(record.task for record in one.records)
        ]
        for trait in (
            lambda one: one.is_upstream,
            lambda one: one.window,
            lambda one: one.capacity,
        ):
            own = [one for one in candidates if trait(one) == trait(result)]
            candidates = own or candidates
        is_one = len({(one.window, one.capacity) for one in candidates}) == 1
        return candidates[0] if is_one else None

    return matching
