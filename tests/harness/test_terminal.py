"""What a command shows where its output goes to a file, and how it ends when it is stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scope.harness import progress
from scope.harness.signals import exit_code, stopped_by_signals
from tests.harness.running import Run, arguments_of

ROOT = Path(__file__).parents[2]


def heed_signals() -> None:
    """In a new process: a shell's background jobs, as these tests may be, ignore some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    error = capsys.readouterr().err
    assert "\r" not in error
    first, last = [line for line in error.splitlines() if "gsm8k" in line]
    assert first.startswith("H2O+slide")
    assert "gsm8k: 0 of 5 prompts [" in first
    assert "gsm8k: 5 of 5 prompts [" in last
    assert " tokens/s]" in last


def test_lines_come_now_and_then(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    run(batch_size=1)
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if "gsm8k: 3 of 5 prompts" in line]) > 5


def test_bar_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run()
    assert "gsm8k: 100%|" in terminal.getvalue()


def test_bars_of_others_are_kept_out_and_warnings_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.without_bars():
        for text in ("before\n", "\rbar 1", "\rbar 2", "\n", "a warning\n"):
            sys.stderr.write(text)
    assert capsys.readouterr().err == "before\na warning\n"


def test_stopped(run: Run, model_folder: Path, data_file: Path, tmp_path: Path) -> None:
    options = {"max_new_tokens": 150, "batch_size": 1}
    through = (run("through", **options) / "H2O.json").read_bytes()
    folder = tmp_path / "stopped" / "tiny-llama_24" / "gsm8k"
    result = folder / "H2O.json"
    arguments = arguments_of(model_folder, data_file, tmp_path / "stopped", **options)
    command = [sys.executable, ROOT / "run_longgenbench.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_signals, **pipes) as process:
        while not (result.exists() and result.read_bytes().count(b"\n") > 1):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
    assert process.returncode == 143
    kept = result.read_bytes().count(b"\n")
    last = error.decode().splitlines()[-1]
    assert last.startswith(f"stopped; {kept} finished examples in 1 result files are kept; start")
    assert b"Traceback" not in error
    assert sorted(file.name for file in folder.iterdir()) == ["H2O.json", "run.json"]
    assert json.loads((folder / "run.json").read_text())["starts"][0]["tokens"] > 0
    assert (run("stopped", **options) / "H2O.json").read_bytes() == through


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_every_signal_has_its_code_and_handlers_are_put_back(number: int, code: int) -> None:
    own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, own)
    try:
        with pytest.raises(KeyboardInterrupt) as interrupt, stopped_by_signals():  # noqa: PT012
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert exit_code(interrupt.value) == code
        assert signal.getsignal(number) == own
    finally:
        signal.signal(number, before)


def test_interrupted_while_importing() -> None:
    command = [sys.executable, "-X", "importtime", "run_longgenbench.py", "--help"]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "preexec_fn": heed_signals}
    with subprocess.Popen(command, **options) as process:
        for line in process.stderr:
            if line.endswith(b" numpy\n"):
                break
        process.send_signal(signal.SIGINT)
        lines = [line for line in process.stderr if not line.startswith(b"import time:")]
    assert lines == [b"stopped before anything had begun\n"]
    assert process.returncode == 130
