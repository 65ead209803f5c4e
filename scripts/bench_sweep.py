"""How well a sweep fills several workers: seconds, tokens/s, efficiency, and whether files agree.

    python scripts/bench_sweep.py GRID.yaml --workers 1 2 4 --out results/runs/bench --slice 8 ...

Further options are those of sweep.py. Each number of workers does the whole grid on a Ray cluster
of this machine, in a folder of its own below --out. Efficiency is that of all seconds, and of those
from the beginning of the first unit to the end of the last, without what starting takes. Ends with
a line of JSON, and exit code 1 where two result files differ.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    args, others = parser.parse_known_args(argv)
    if args.out.exists():
        parser.error(f"--out {args.out} is there already; what it holds would not be done again")
    print("workers  seconds  of them units  tokens/s  efficiency  of the units  files agree")
    rows: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}  # of the first number of workers
    for count in args.workers:
        folder = args.out / str(count)
        command = [sys.executable, "sweep.py", str(args.grid.resolve()), "--ray", "auto"]
        command += ["--workers", str(count), "--results_dir", str(folder.resolve()), *others]
        seconds = _seconds(command)
        runs = [json.loads(file.read_text()) for file in folder.rglob("run.json")]
        tokens, units = sum(run["metrics"]["generated_tokens"] for run in runs), _seconds_of(runs)
        row = {"workers": count, "seconds": seconds, "units_s": units, "tokens": tokens}
        rows.append(row)
        share = rows[0]["workers"] / count
        row["tokens_per_s"] = round(tokens / seconds, 1)
        row["efficiency"] = round(share * rows[0]["seconds"] / seconds, 3)
        row["efficiency_of_units"] = round(share * rows[0]["units_s"] / units, 3)
        own = _files(folder)
        files = files or own
        row["files_agree"] = own == files
        print(
            f"{count:7}  {seconds:7.1f}  {units:13.1f}  {row['tokens_per_s']:8}  "
            f"{row['efficiency']:10.1%}  {row['efficiency_of_units']:12.1%}  {row['files_agree']}",
            flush=True,
        )
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": device, "versions": versions, "files": len(files), "rows": rows}))
    return 0 if all(row["files_agree"] for row in rows) else 1


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


def _seconds_of(runs: Sequence[dict[str, Any]]) -> float:
    """From the beginning of the first unit to the end of the last, to a second."""
    starts = [start for run in runs for start in run["starts"]]
    begun = [datetime.fromisoformat(start["when"]).timestamp() for start in starts]
    ended = [at + start["seconds"] for at, start in zip(begun, starts, strict=True)]
    return round(max(ended) - min(begun), 2)


def _files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*.json") if path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.exit(main())
