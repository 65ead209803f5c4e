"""Kills generations of the recall model at random moments, and compares what comes of them.

    python scripts/stress_kill.py 100

Kills so many processes with SIGKILL, in turn with batches of 1, 3 and 7 rows. A run is killed,
started again, killed again ... a few times, then left to end; its result file must equal, byte for
byte, that of a run that nobody disturbed. Ends with a line of JSON, and exit code 1 where two files
differ.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).parents[1]
BATCH_SIZES = (1, 3, 7)
MOST_KILLS_A_RUN = 5
OPTIONS = {
    "model_path": "scope/recall/model",
    "data_file": "scope/recall/recall_32.jsonl",
    "method": "SnapKV",
    "decoding_metric": "adaptive",
    "decoding_score": "cumulative",
    "max_capacity_prompts": 98,
    "decoding_window_size": 64,
    "decoding_recent_size": 24,
    "max_new_tokens": 352,
    "max_num_examples": 14,
    "device": "cpu",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a resumed file differs from an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    arguments = parser.parse_args(argv)
    moments = random.Random(arguments.seed)
    counts = {"kills": 0, "with_lines_written": 0, "runs": 0, "differ": 0}
    with tempfile.TemporaryDirectory() as folder:
        whole = {size: Path(folder, f"whole{size}") for size in BATCH_SIZES}
        generating = {size: _undisturbed(path, size) for size, path in whole.items()}
        for size in cycle(BATCH_SIZES):
            if counts["kills"] >= arguments.kills:
                break
            save_dir = Path(folder, f"killed{counts['runs']}")
            kills = min(moments.randint(1, MOST_KILLS_A_RUN), arguments.kills - counts["kills"])
            for _ in range(kills):
                left = 1 - _lines(save_dir) / OPTIONS["max_num_examples"]
                if not _kill(save_dir, size, moments.uniform(0, left * generating[size])):
                    break
                counts["kills"] += 1
                counts["with_lines_written"] += _lines(save_dir) > 0
            _undisturbed(save_dir, size)
            counts["runs"] += 1
            if _result(save_dir).read_bytes() != _result(whole[size]).read_bytes():
                counts["differ"] += 1
                print(f"{save_dir.name}, batch {size}: the files differ", file=sys.stderr)
    print(json.dumps(counts))
    return 1 if counts["differ"] else 0


def _undisturbed(save_dir: Path, batch_size: int) -> float:
    """Run to the end; seconds of generating."""
    with _start(save_dir, batch_size) as process:
        output = process.communicate()[0]
    if process.returncode != 0:
        raise RuntimeError(output)
    run = json.loads(_result(save_dir).with_name("run.json").read_text())
    return run["metrics"]["seconds"]


def _kill(save_dir: Path, batch_size: int, seconds: float) -> bool:
    """Kill a start so many seconds after it has begun to generate; False if it was done by then."""
    starts = _starts(save_dir)
    with _start(save_dir, batch_size) as process:
        while process.poll() is None and _starts(save_dir) == starts:
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def _lines(save_dir: Path) -> int:
    """Examples that are done."""
    result = _result(save_dir)
    return result.read_bytes().count(b"\n") if result.exists() else 0


def _starts(save_dir: Path) -> int:
    run_file = _result(save_dir).with_name("run.json")
    return len(json.loads(run_file.read_text())["starts"]) if run_file.exists() else 0


def _start(save_dir: Path, batch_size: int) -> subprocess.Popen[str]:
    options = OPTIONS | {"save_dir": save_dir, "batch_size": batch_size}
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "run_longgenbench.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _result(save_dir: Path) -> Path:
    return save_dir / "model_98" / "recall" / "SnapKV.json"


if __name__ == "__main__":
    sys.exit(main())
