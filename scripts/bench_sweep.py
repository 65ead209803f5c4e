"""How well a sweep fills several workers: seconds, tokens/s, efficiency, and whether files agree.

    python scripts/bench_sweep.py GRID.yaml --workers 1 2 4 --out results/runs/bench --slice 8 ...

Further options are those of sweep.py. Each number of workers does the whole grid on a Ray cluster
of this machine, in a folder of its own below --out, and then once more with nothing left to do,
which is what starting takes. Efficiency is that of all seconds, and without starting. Ends with a
line of JSON, and exit code 1 where two result files differ.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
    rows = []
    for count in args.workers:
        folder = args.out / str(count)
        command = [sys.executable, "sweep.py", str(args.grid.resolve()), "--ray", "auto"]
        command += ["--workers", str(count), "--results_dir", str(folder.resolve()), *others]
        seconds, start = _seconds(command), _seconds(command)
        tokens = sum(
            json.loads(file.read_text())["metrics"]["generated_tokens"]
            for file in folder.rglob("run.json")
        )
        rows.append({"workers": count, "seconds": seconds, "start_s": start, "tokens": tokens})
    first, whole = rows[0], _files(args.out / str(args.workers[0]))
    print("workers  seconds  of them start  tokens/s  efficiency  without start  files agree")
    for row in rows:
        row["tokens_per_s"] = round(row["tokens"] / row["seconds"], 1)
        share = first["workers"] / row["workers"]
        row["efficiency"] = round(share * first["seconds"] / row["seconds"], 3)
        work, own = first["seconds"] - first["start_s"], row["seconds"] - row["start_s"]
        row["efficiency_without_start"] = round(share * work / own, 3)
        row["files_agree"] = _files(args.out / str(row["workers"])) == whole
        print(
            f"{row['workers']:7}  {row['seconds']:7.1f}  {row['start_s']:13.1f}  "
            f"{row['tokens_per_s']:8}  {row['efficiency']:10.1%}  "
            f"{row['efficiency_without_start']:13.1%}  {row['files_agree']}"
        )
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": device, "versions": versions, "files": len(whole), "rows": rows}))
    return 0 if all(row["files_agree"] for row in rows) else 1


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


def _files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*.json") if path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.exit(main())
