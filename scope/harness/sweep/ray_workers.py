"""Workers as Ray actors: each holds its GPUs and its model until the sweep ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from scope.errors import ScopeError
from scope.harness.lock import forget, this_process
from scope.harness.models import Models
from scope.harness.sweep.local import do_unit
from scope.harness.sweep.unit import Unit
from scope.harness.sweep.workers import Ended, Event, Lost, Ready

_SECONDS_PER_LOOK = 1.0


class _Actor:
    """What runs in a worker's process."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)  # paths mean what they mean where the sweep was started
        self._models = Models()

    def process(self) -> tuple[str, int]:
        return this_process()

    def do(self, worker: int, unit: Unit, attempt: int) -> Ended:
        return do_unit(worker, unit, self._models, attempt)


class RayWorkers:
    """Actors on a cluster; one that is lost is replaced wherever there is room.

    All nodes must see the folders of models, data and results by the same paths.

    Args:
        ray: the module.
        count: how many.
        gpus: of each worker; a fraction lets several share one.
        cpus: of each worker.

    Attributes:
        processes: host and process of each worker that has begun.
    """

    def __init__(self, ray: Any, count: int, gpus: float, cpus: int) -> None:
        self._ray = ray
        self._kind = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=0)(_Actor)
        self._actors: dict[int, Any] = {}
        # What is awaited of each worker: its process at first, and later the unit that it does.
        self._awaited: dict[Any, tuple[int, Unit | None]] = {}
        self.processes: dict[int, tuple[str, int]] = {}
        for worker in range(count):
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        self._actors[worker] = self._kind.remote(str(Path.cwd()))
        self._awaited[self._actors[worker].process.remote()] = worker, None

    def start(self, worker: int, unit: Unit, attempt: int) -> None:
        self._awaited[self._actors[worker].do.remote(worker, unit, attempt)] = worker, unit

    def wait(self) -> list[Event]:
        done, _ = self._ray.wait(list(self._awaited), timeout=_SECONDS_PER_LOOK)
        return [self._event(answer, *self._awaited.pop(answer)) for answer in done]

    def _event(self, answer: Any, worker: int, unit: Unit | None) -> Event:
        try:
            result = self._ray.get(answer)
        except self._ray.exceptions.RayActorError:
            process = self.processes.pop(worker, None)
            if unit is not None and process is not None:
                for job in unit.jobs:
                    forget(job.folder, process)
            self._begin(worker)
            return Lost(worker, unit)
        if unit is not None:
            return replace(result, unit=unit)  # what came back is a copy
        self.processes[worker] = result
        return Ready(worker)


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Join a Ray cluster, or make one of this machine; gives the module `ray`.

    Args:
        address: of a cluster; ``auto`` for the one that runs here, or else a new one.

    Raises:
        ScopeError: Ray is not installed, or no cluster answers there.
    """
    try:
        import ray
    except ImportError:
        raise ScopeError(
            "--ray needs Ray, which is not installed: pip install -r requirements-cluster.txt"
        ) from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    joined = ray.is_initialized()
    try:
        if not joined:
            _join(ray, address, quiet)
        yield ray
    finally:
        if not joined:
            ray.shutdown()


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            if address != "auto":
                raise
            ray.init(include_dashboard=False, **options)
    except Exception as error:  # Ray has no class of its own for a node that does not start
        raise ScopeError(f"--ray {address}: no cluster answers or starts ({error})") from error


def sizes(ray: Any, count: int | None, gpus: float | None) -> tuple[int, float, int]:
    """How many workers a cluster is to have, and how many GPUs and CPUs each.

    Args:
        ray: the module, in a cluster.
        count: as asked for; by default as many as its GPUs allow, or one on each node without.
        gpus: as asked for; by default 1 where there are any.

    Raises:
        ScopeError: where the cluster has less.
    """
    has = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if has.get("GPU") else 0.0
    if gpus > has.get("GPU", 0):
        raise ScopeError(f"--gpus_per_worker {gpus}: the cluster has {has.get('GPU', 0):.0f} GPUs")
    if gpus:
        return count or int(has["GPU"] // gpus), gpus, 1
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    count = count or len(nodes)
    cpus = max(1, int(min(nodes) // -(-count // len(nodes))))
    return count, 0.0, cpus
