"""Result folders in use, full, unreadable or of one another: one line, and nothing is lost."""

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope.harness import results
from scope.harness.cli import main
from scope.harness.lock import locked
from tests.harness.running import Run, arguments_of, one_error, read

HOST = socket.gethostname()


@pytest.fixture
def arguments(model_folder: Path, data_file: Path, tmp_path: Path) -> list[str]:
    return arguments_of(model_folder, data_file, tmp_path / "out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where these arguments write."""
    return tmp_path / "out" / "tiny-llama_24" / "gsm8k"


# --- one process at a time ------------------------------------------------------------------------


def test_second_process_is_refused(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(folder):
        assert json.loads((folder / "run.lock").read_text()) == {
            "host": HOST,
            "process": os.getpid(),
        }
        code = main(arguments)
    error = one_error(code, capsys.readouterr().err)
    assert f"is written by process {os.getpid()} on host {HOST}; wait for it" in error
    assert list(folder.iterdir()) == []
    assert main(arguments) == 0
    assert not (folder / "run.lock").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_released_whatever_happens(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), locked(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_a_lock_that_is_taken_over(tmp_path: Path) -> None:
    code = "import sys, pathlib, scope.harness.lock as l\n"
    code += "with l.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(results.ScopeError, match=f"process {process.pid} on"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == process.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


def test_lock_that_is_released_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def after_release(file: Any, operation: int) -> None:
        if not calls:
            (tmp_path / "run.lock").unlink()
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", after_release)
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"host": 3}'])
def test_unreadable_lock_is_taken_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(content)
    with locked(tmp_path):
        pass


def test_lock_of_another_host_is_the_users_to_remove(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text('{"host": "elsewhere", "process": 12}')
    with pytest.raises(results.ScopeError, match="12 on host elsewhere; if it has ended, remove"):  # noqa: SIM117
        with locked(tmp_path):
            pass
    assert (tmp_path / "run.lock").exists()


# --- what cannot be written or read ---------------------------------------------------------------


def test_disk_full(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files breaks off a line in the middle, as a full disk does."""
    result = run("whole") / "H2O.json"
    capsys.readouterr()
    size = len(result.read_bytes()) - 100
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(AssertionError):
            run("full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = one_error(2, capsys.readouterr().err)
    assert "H2O.json: cannot be written (File too large); finished examples are safe" in error
    other = result.parents[3] / "full" / "tiny-llama_24" / "gsm8k" / "H2O.json"
    assert len(other.read_bytes()) == size
    run("full")
    assert other.read_bytes() == result.read_bytes()
    assert sorted(file.name for file in other.parent.iterdir()) == ["H2O.json", "run.json"]


def test_no_room_for_the_run_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(max_num_examples=2)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AssertionError):
        run()
    error = one_error(2, capsys.readouterr().err)
    assert "run.json: cannot be written (No space left on device)" in error
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["H2O.json", "run.json"])
def test_unreadable_file(
    name: str, run: Run, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    (folder / name).unlink()
    (folder / name).mkdir()
    error = one_error(main(arguments), capsys.readouterr().err)
    assert f"{name}: cannot be read (Is a directory); finished examples are safe" in error


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[1]", b"null", b"{}", b'{"config": 1}', b'{"config": {}, "starts": {}}'],
)
def test_odd_run_file(content: bytes, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    (folder / "run.json").write_bytes(content)
    with pytest.raises(AssertionError):
        run()
    assert "run.json: not " in one_error(2, capsys.readouterr().err)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written anywhere, also for root, who may write what is read-only."""
    opened = Path.open

    def refusing(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"max_num_examples": 3}])
def test_finished_run_in_a_read_only_folder_prints_its_table(
    options: dict[str, Any],
    run: Run,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    run()
    table = capsys.readouterr().out
    request.getfixturevalue("read_only")
    changed = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    assert main([*arguments, *changed]) == 0
    output = capsys.readouterr()
    assert output.out == table
    assert "results.csv: cannot be written (Read-only file system)" in output.err


def test_unfinished_run_in_a_read_only_folder(
    run: Run,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    run(max_num_examples=2)
    capsys.readouterr()
    request.getfixturevalue("read_only")
    error = one_error(main(arguments), capsys.readouterr().err)
    assert "gsm8k: cannot be written (Permission denied); finished examples are safe" in error


# --- several runs ---------------------------------------------------------------------------------


@pytest.fixture
def several(arguments: list[str], tmp_path: Path) -> Callable[..., list[str]]:
    """A command of several runs, each with a folder of its own unless it says otherwise."""

    def command(*runs: dict[str, Any]) -> list[str]:
        names = {name for run in runs for name in run} | {"save_dir"}
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        shared = [text for pair in pairs if pair[0][2:] not in names for text in pair]
        given = dict(zip((a[2:] for a in arguments[::2]), arguments[1::2], strict=True))
        whole = [
            {name: given[name] for name in names if name in given}
            | {"save_dir": f"{tmp_path}/out{number}"}
            | run
            for number, run in enumerate(runs)
        ]
        config = tmp_path / "runs.yaml"
        config.write_text(json.dumps({"runs": whole}))
        return [*shared, "--config", str(config)]

    return command


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data_file": "gsm8k_nowhere.jsonl"}, "data file gsm8k_nowhere.jsonl: No such file"),
        ({"model_path": "nowhere/model"}, "--model_path nowhere/model: cannot be loaded"),
        ({"device": "gpu"}, "--device gpu"),
        ({"method": "mine"}, "unknown method 'mine'"),
        ({"max_new_tokens": 250}, "the prompt has"),
        ({"compare_with": "nowhere.json"}, "--compare_with nowhere.json: no such file"),
        ({"attn_implementation": "flash_attention_2"}, "needs the flash-attn package"),
        ({"save_dir": __file__}, "cannot be written (Not a directory)"),
        ({"save_dir": "{tmp_path}/out0/"}, " on gsm8k would write into one folder"),
        ({"save_dir": "{tmp_path}/done"}, "belongs to another configuration"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_all_runs_are_checked_before_the_first(
    wrong: dict[str, Any],
    message: str,
    several: Callable[..., list[str]],
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("done", max_new_tokens=9)
    capsys.readouterr()
    wrong = {k: v.format(tmp_path=tmp_path) if k == "save_dir" else v for k, v in wrong.items()}
    code = main(several({}, wrong))
    assert message in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out0").exists()


def test_a_run_that_fails_does_not_stop_the_others(
    several: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "out1" / "tiny-llama_24" / "gsm8k"):
        code = main(several({}, {"decoding_metric": "None"}, {"decoding_metric": "h2o"}))
    output = capsys.readouterr()
    assert code == 2
    assert "error: not finished: H2O+None on gsm8k" in output.err
    assert f"is written by process {os.getpid()}" in output.err
    assert [line.split()[0] for line in output.out.splitlines()[1:]] == ["H2O+slide", "H2O+h2o"]


def test_a_mistake_in_the_program_leaves_the_table(
    several: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("scope.harness.run._agreement", wrong)
    first = {"decoding_metric": "h2o"}
    result = tmp_path / "out0" / "tiny-llama_24" / "gsm8k" / "H2O.json"
    with pytest.raises(ZeroDivisionError):
        main(several(first, {"compare_with": str(result)}))
    assert "H2O+h2o" in capsys.readouterr().out


def test_comparison_with_a_run_before_it(several: Callable[..., list[str]], tmp_path: Path) -> None:
    first = {"decoding_metric": "h2o"}
    result = tmp_path / "out0" / "tiny-llama_24" / "gsm8k" / "H2O.json"
    assert main(several(first, {"compare_with": str(result)})) == 0
    run = json.loads((tmp_path / "out1/tiny-llama_24/gsm8k/run.json").read_text())
    tokens = sum(record["generated_tokens"] - 1 for record in read(result))
    assert run["metrics"]["agreement"]["tokens"] == tokens
