"""What may differ from one start of a run to the next, and what run.json keeps of each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines.lococo_heads import Heads
from scope.harness.data import file_hash
from scope.harness.results import ResultFile
from tests.harness.running import Run, one_error, read


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def elsewhere(data_file: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The data and an instruction in another folder, with something put after them."""

    def copy(name: str, more: str = "") -> Path:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        source = data_file if name == "data_file" else data_file.with_name("instruction.json")
        path = Path(shutil.copy(source, folder))
        path.write_text(path.read_text() + more)
        return path

    return copy


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("data_file", "", ""),
        ("instruction_file", "", ""),
        (
            "data_file",
            '{"prompt": "Question_1: w1", "questions": [], "answers": ["#### 1"]}\n',
            "belongs to another configuration, with another data_sha256;",
        ),
        (
            "instruction_file",
            " ",
            "belongs to another configuration, with another instruction_sha256;",
        ),
    ],
)
def test_files_by_another_path(
    name: str,
    more: str,
    message: str,
    run: Run,
    elsewhere: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = (run("whole") / "H2O.json").read_bytes()
    folder = run(max_num_examples=2)
    before, path = (folder / "H2O.json").read_bytes(), elsewhere(name, more)
    capsys.readouterr()
    if message:
        with pytest.raises(AssertionError):
            run(**{name: path})
        assert message in one_error(2, capsys.readouterr().err)
        assert (folder / "H2O.json").read_bytes() == before
    else:
        run(**{name: path})
        assert (folder / "H2O.json").read_bytes() == whole
        assert described(folder)["config"][name] == str(path)


def test_other_heads_are_another_configuration(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads, moved = tmp_path / "heads.safetensors", tmp_path / "moved.safetensors"
    Heads.random(layers=2, slots=4, head_dim=8, kernel=3, seed=0).save(heads)
    options = {"method": "LoCoCo", "window_size": 4}
    folder = run(**options, heads=heads, max_num_examples=1)
    shutil.copy(heads, moved)
    run(**options, heads=moved, max_num_examples=2)
    before = (folder / "LoCoCo.json").read_bytes()
    Heads.random(layers=2, slots=4, head_dim=8, kernel=3, seed=1).save(heads)
    capsys.readouterr()
    with pytest.raises(AssertionError):
        run(**options, heads=heads)
    error = one_error(2, capsys.readouterr().err)
    assert "belongs to another configuration, with another heads_sha256;" in error
    assert (folder / "LoCoCo.json").read_bytes() == before
    assert described(folder)["config"]["heads_sha256"] == file_hash(moved)


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (2, 5)])
def test_another_batch_size_goes_on_and_is_recorded(sizes: tuple[int, int], run: Run) -> None:
    result = run(batch_size=sizes[0]) / "H2O.json"
    whole = result.read_bytes()
    lines = whole.splitlines(keepends=True)
    result.write_bytes(lines[1] + lines[0])
    run(batch_size=sizes[1])
    assert result.read_bytes() == whole
    run_file = described(result.parent)
    assert [start["batch_size"] for start in run_file["starts"]] == list(sizes)
    assert run_file["config"]["batch_size"] == run_file["metrics"]["batch_size"] == sizes[1]


@pytest.mark.parametrize("more", [3, 5, 99, None])
def test_more_examples_go_on(more: int | None, run: Run) -> None:
    options = {} if more is None else {"max_num_examples": more}
    whole = (run("whole", **options) / "H2O.json").read_bytes()
    folder = run(max_num_examples=2)
    first = described(folder)
    run(**options)
    assert (folder / "H2O.json").read_bytes() == whole
    run_file = described(folder)
    assert run_file["data"]["rows"] == list(range(min(more or 5, 5)))
    assert run_file["config_hash"] == first["config_hash"]
    assert run_file["config"]["max_num_examples"] == more


def test_fewer_examples_leave_those_that_are_there(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    table = capsys.readouterr().out
    run(max_num_examples=2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert capsys.readouterr().out == table


def test_fewer_examples_than_an_unfinished_run_has(run: Run) -> None:
    result = run() / "H2O.json"
    lines = result.read_bytes().splitlines(keepends=True)
    result.write_bytes(lines[2] + lines[0] + lines[1] + lines[3][:30])
    run(max_num_examples=2)
    assert result.read_bytes() == b"".join(lines[:3])
    assert described(result.parent)["data"]["rows"] == [0, 1, 2]


@pytest.mark.parametrize("killed", [False, True])
def test_closeness_is_measured_anew_over_more_examples(
    killed: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run("other", decoding_metric="h2o") / "H2O.json"
    expected = described(run("whole", compare_with=other))["metrics"]["agreement"]
    run(max_num_examples=2, compare_with=other)
    if killed:

        def stopped(*args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("scope.harness.run._agreement", stopped)
        with pytest.raises(AssertionError):
            run(compare_with=other)
        monkeypatch.undo()
    assert described(run(compare_with=other))["metrics"]["agreement"] == expected


def test_every_start_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was stopped, with what it had done until its last example."""
    append, left = ResultFile.append, 3

    def stopped(file: ResultFile, record: dict[str, Any]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        append(file, record)

    monkeypatch.setattr(ResultFile, "append", stopped)
    with pytest.raises(AssertionError):
        run(batch_size=1)
    monkeypatch.undo()
    folder = run(batch_size=1)
    first, second = described(folder)["starts"]
    lengths = [record["generated_tokens"] for record in read(folder / "H2O.json")]
    assert (first["tokens"], second["tokens"]) == (sum(lengths[:2]), sum(lengths[2:]))
    assert first.keys() == second.keys()
    assert first.keys() == {
        *("when", "environment", "versions", "batch_size", "tokens", "seconds", "work", "spent")
    }
    assert first["versions"]["torch"]
    assert first["environment"]["device"]
    assert first["when"] <= second["when"]
    metrics = described(folder)["metrics"]
    seconds = first["seconds"] + second["seconds"]
    assert min(first["seconds"], second["seconds"]) > 0
    assert metrics["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert metrics["generated_tokens"] == sum(lengths)
    assert metrics["tokens_per_second"] == pytest.approx(sum(lengths) / seconds, rel=1e-3)
