"""Sweeps on Ray: workers and nodes may be lost, the files are those of one process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scope.harness.cli import checked_jobs, main
from scope.harness.command_line import parse_command
from scope.harness.models import Models
from scope.harness.sweep.loop import do_units
from scope.harness.sweep.ray_workers import RayWorkers
from scope.harness.sweep.unit import units_of
from scope.harness.sweep.workers import Event, Lost
from tests.harness.running import result_files

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ROOT = Path(__file__).parents[2]
GRID = f"""
model_path: {ROOT}/scope/recall/model
data_file: {ROOT}/scope/recall/recall_32.jsonl
max_new_tokens: 96
max_num_examples: 6
batch_size: 2
max_capacity_prompts: 98
decoding_window_size: 24
decoding_recent_size: 12
device: cpu
method: [ALLKV, H2O]
decoding_metric: [slide, adaptive]
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes, each with room for one worker."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "sweep"}
    try:
        nodes = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        nodes.second = nodes.add_node(num_cpus=1)
    except Exception as error:  # on a busy machine, within times that are Ray's own
        pytest.skip(f"Ray does not start here: {error}")
    ray.init(address=nodes.address, **quiet)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_killed_worker_and_a_removed_node(nodes: Any, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    assert main(["--config", str(grid), "--results_dir", str(tmp_path / "whole")]) == 0
    jobs = checked_jobs(
        parse_command(["--config", str(grid), "--results_dir", str(tmp_path / "swept")]),
        models := Models(),
    )
    units = units_of(jobs, models, slice_size=4)
    workers = RayWorkers(ray, 2, gpus=0, cpus=1)
    lost: list[Lost] = []
    # One look a second: long enough for a unit to be under way.
    steps = iter(["begin", "begin", "kill", "on", "remove"])

    def disturb(events: list[Event]) -> None:
        lost.extend(event for event in events if isinstance(event, Lost))
        if len(workers.processes) < 2 and not lost:
            return
        match next(steps, None):
            case "kill":
                os.kill(workers.processes[0][1], signal.SIGKILL)
            case "remove":
                nodes.remove_node(nodes.second)

    assert not do_units(units, workers, disturb)
    assert len(lost) >= 2
    assert result_files(tmp_path / "swept") == result_files(tmp_path / "whole")
