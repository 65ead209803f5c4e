"""Which runs a grid stands for."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from scope import ScopeError
from scope.harness.command_line import parse_command
from scope.harness.jobs import Job, jobs_of
from scope.longgenbench.draw import draw
from scope.registry import SCORES

ROOT = Path(__file__).parents[2]
TABLE_1 = {
    "ALLKV+None",
    "StreamingLLM+slm",
    "PyramidInfer+pyramidinfer",
    *(f"H2O+{strategy}" for strategy in ("h2o", "slide", "adaptive", "discontinuous")),
}
TABLE_2 = {
    f"{method}+{strategy}"
    for method in ("ALLKV", "SnapKV", "PyramidKV")
    for strategy in ("None", "slide", "adaptive", "discontinuous")
}


Labels = Callable[..., list[str]]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    def read(text: str, *options: str) -> list[str]:
        path = tmp_path / "grid.yaml"
        path.write_text("model_path: m\ndevice: cpu\n" + text)
        runs = parse_command(["--config", str(path), *options]).runs
        return [
            f"{run.compression.label} {run.compression.options.get('decoding_window_size', '')}"
            for run in runs
        ]

    return read


def test_lists_are_products(labels: Labels) -> None:
    text = (
        "decoding_window_size: [32, 64]\nruns:\n  - {method: [H2O, ALLKV], "
        "decoding_metric: [None, slide]}\n  - {method: SnapKV}\n"
    )
    # Without a strategy nothing reads the window, and one run is left of two.
    assert labels(text) == [
        "H2O+None ",
        "H2O+slide (current) 32",
        "ALLKV+None ",
        "ALLKV+slide (current) 32",
        "H2O+slide (current) 64",
        "ALLKV+slide (current) 64",
        "SnapKV+None ",
    ]
    assert labels(text, "--decoding_window_size", "16")[1] == "H2O+slide (current) 16"
    text = "method: [H2O, ALLKV]\ndecoding_metric: [slide, slm]\nexclude: [H2O+slide*, '*+slm']\n"
    assert labels(text) == ["ALLKV+slide (current) 512"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: []\n", "method is an empty list"),
        ("method: [H2O, H3O]\n", "H3O"),
        ("exclude: [SnapKV+None]\n", "names SnapKV.None, which is the label of none of the runs"),
        ("exclude: ['*']\n", "leaves none of the runs"),
        ("exclude: ALLKV\n", "must be a list of labels"),
        (
            "runs:\n  - {decoding_metric: [None, slm], kernel_size: 5}\n",
            "kernel_size is read by none",
        ),
        ("method: ALLKV\nkernel_size: 5\n", "kernel_size is not an option of ALLKV"),
    ],
)
def test_bad_grids(text: str, message: str, labels: Labels) -> None:
    with pytest.raises(ScopeError, match=message):
        labels(text)


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("longgenbench_4k", 30, TABLE_1),
        ("longgenbench_8k", 60, TABLE_1),
        ("gsm8k_plug_in", 30, TABLE_2),
    ],
)
def test_published_grids(name: str, k: int, expected: set[str]) -> None:
    path = ROOT / f"scripts/scripts_longgenbench/{name}.yaml"
    assert len(path.read_text().splitlines()) < 16
    command = parse_command(["--config", str(path), "--model_path", "m", "--device", "cpu"])
    jobs = [job for run in command.runs for job in jobs_of(run)]
    names = {f"{job.compression.method}+{job.compression.decoding_metric}" for job in jobs}
    assert names == expected
    assert {run.K for run in command.runs} == {k}
    windows = [job.compression.options.get("decoding_window_size") for job in jobs]
    assert windows.count(512) == windows.count(1024) == len(jobs) // 2 - windows.count(None) // 2
    assert all(str(job.folder).startswith("results/runs/") for job in jobs)
    assert len({job.folder for job in jobs}) == len(jobs)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Where the data is that its file says how to draw."""
    monkeypatch.chdir(tmp_path)
    sizes = {"ledger": 40, "notes": 40, "dfs": 20, "paths": 10, "countdown": 2}
    for task, k in sizes.items():
        draw(task, k, seed=1, num_prompts=1, out=Path("data/tasks/seed1") / task)
    return jobs_in("generated_tokens") + jobs_in("generated_tokens_searches")


def jobs_in(name: str) -> list[Job]:
    options = ["--config", str(ROOT / f"scripts/{name}.yaml"), "--model_path", "m"]
    runs = parse_command([*options, "--device", "cpu"]).runs
    jobs = [job for run in runs for job in jobs_of(run)]
    assert len({job.folder for job in jobs}) == len(jobs)
    return jobs


def test_every_score_of_generated_tokens_has_a_row_on_the_real_model(experiment: list[Job]) -> None:
    jobs = experiment + jobs_in("relatives")
    # Its calibration is a file of the model's.
    assert set(SCORES) - {job.compression.decoding_score for job in jobs} == {"triattention"}


def test_the_experiment_compares_with_chance_at_equal_bytes(experiment: list[Job]) -> None:
    pools: dict[object, set[str]] = defaultdict(set)
    for job in experiment:
        size = job.compression.options.get("decoding_window_size")
        pools[job.data_file, size].add(job.label)
    assert all(
        ("ALLKV+None" if size is None else "ALLKV+slide (random)") in labels
        for (_, size), labels in pools.items()
    )
    assert len(pools) == 14


def test_the_whole_grid_holds_every_published_table_in_both_fidelities() -> None:
    folder = ROOT / "scripts" / "scripts_longgenbench"

    def runs(name: str, *options: str) -> list[str]:
        arguments = ["--config", str(folder / name), "--model_path", "m", *options]
        return [
            str((run.K, run.dataset, run.compression.settings()))
            for run in parse_command(arguments).runs
        ]

    tables = ("longgenbench_4k.yaml", "longgenbench_8k.yaml", "gsm8k_plug_in.yaml")
    single = {
        run
        for fidelity in ("paper", "upstream")
        for table in tables
        for run in runs(table, "--fidelity", fidelity)
    }
    whole = set(runs("published_grid.yaml"))
    assert whole <= single
    assert set(runs("longgenbench_4k_upstream.yaml")) < whole
    # Table 2's full cache is in table 1.
    left_out = single - whole
    assert len(left_out) == 2
    assert all(
        "(30, ['gsm8k'], {'method': 'ALLKV', 'decoding_metric': 'None'" in r for r in left_out
    )
