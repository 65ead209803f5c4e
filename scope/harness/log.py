"""How far a command is, told to trackio or wandb, which share the few calls that are used here."""

import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from scope.errors import ScopeError
from scope.evaluation import indexed
from scope.evaluation.results import find_result_folders, read_dataset
from scope.harness.jobs import Job
from scope.harness.watch import Watch

SERVICES = ("trackio", "wandb")
_SECONDS = 30.0


@contextmanager
def logged(jobs: Sequence[Job], service: str | None) -> Iterator[None]:
    """Log, now and then and at the end, what the jobs' files say, whoever writes them.

    Args:
        jobs: the command's.
        service: one of `SERVICES`; None for no log.

    Raises:
        ScopeError: the service's package is not installed.
    """
    if service is None:
        yield
        return
    try:
        log: Any = importlib.import_module(service)
    except ImportError:
        raise ScopeError(f"--log_to {service} is not installed: pip install {service}") from None
    watch, over = Watch(jobs), threading.Event()
    log.init(project="scope", config={"runs": sorted({job.label for job in jobs})})

    def tell() -> None:
        while not over.wait(_SECONDS):
            log.log(_figures(watch, jobs))

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        log.log(_figures(watch, jobs))
        log.finish()


def _figures(watch: Watch, jobs: Sequence[Job]) -> dict[str, float]:
    standing = watch.look()
    figures = {
        "examples": float(standing.examples),
        "share_done": standing.examples / watch.total,
        "tokens_per_second": standing.tokens_per_second,
    }
    for job in jobs:
        with suppress(ScopeError):  # nothing there yet, or a line half written
            [folder] = find_result_folders(job.folder.parent)
            score = indexed.score(read_dataset(folder, job.dataset))
            figures[f"accuracy/{job.label}/{job.dataset}"] = score.indexed
    return figures
