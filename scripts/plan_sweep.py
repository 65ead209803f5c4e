"""Where the time of a large sweep would go, by the scheduling loop itself on pretended workers.

    python scripts/plan_sweep.py --workers 1 8 16 64
    python scripts/plan_sweep.py --workers 64 --slice 8

Simulated, not measured: units of the published table's shape (48 configurations, 3 data sets, two
models) take what tokens and the given speeds say, times a random factor; loading a model takes
what the given bandwidth says. Ends with a line of JSON.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from scope.harness.sweep.loop import do_units
from scope.harness.sweep.simulated import SimulatedWorkers
from scope.harness.sweep.unit import Unit

_CONFIGURATIONS, _DATASETS, _EXAMPLES, _TOKENS = 48, 3, 50, 4096
# Bytes of weights, and tokens/s of one GPU at a batch of 8 (results/decode_speed for the first).
_MODELS = {"8B": (16e9, 1600.0), "1.5B": (3.1e9, 4000.0)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 16, 64])
    parser.add_argument("--slice", type=int, default=_EXAMPLES, help="examples of a unit")
    parser.add_argument("--load_gb_per_s", type=float, default=1.0, help="of one worker's disk")
    parser.add_argument("--spread", type=float, default=0.3, help="of a unit's time, as a share")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    results = []
    print("workers  units  hours  running  loading  idle at the end")
    for count in args.workers:
        result = simulate(count, args)
        results.append(result)
        print(
            f"{count:7}  {result['units']:5}  {result['hours']:5.2f}"
            f"  {result['running']:7.1%}  {result['loading']:7.1%}  {result['idle']:15.1%}"
        )
    print(json.dumps({**vars(args), "results": results}))


def simulate(count: int, args: argparse.Namespace) -> dict[str, float]:
    """One sweep: shares of all workers' time, of which only running is needed."""
    chance, seconds = random.Random(args.seed), dict[Unit, float]()
    for model, (_, speed) in _MODELS.items():
        for number in range(_CONFIGURATIONS * _DATASETS):
            for first in range(0, _EXAMPLES, args.slice):
                examples = min(args.slice, _EXAMPLES - first)
                unit = _unit(model, f"{model}/{number}/{first}", examples)
                likely = examples * _TOKENS / speed
                seconds[unit] = likely * chance.uniform(1 - args.spread, 1 + args.spread)

    def load(unit: Unit) -> float:
        return _MODELS[unit.job.model_path][0] / 1e9 / args.load_gb_per_s

    workers = SimulatedWorkers(count, load, lambda unit: seconds[unit])
    do_units(list(seconds), workers)
    end = max(turn.ended for turn in workers.turns)
    loading = sum(turn.loaded - turn.started for turn in workers.turns)
    running = sum(seconds.values())
    return {
        "workers": count,
        "units": len(seconds),
        "hours": round(end / 3600, 3),
        "running": round(running / (count * end), 4),
        "loading": round(loading / (count * end), 4),
        "idle": round(1 - (running + loading) / (count * end), 4),
        "model_loads": sum(turn.loaded > turn.started for turn in workers.turns),
    }


def _unit(model: str, name: str, examples: int) -> Unit:
    """A unit of which no file exists: the loop reads no more of its job than this."""
    job: Any = SimpleNamespace(model_path=model, loading=(model,), result_file=Path(name))
    return Unit(cast(Any, job), int(examples * _TOKENS * _MODELS[model][0]))


if __name__ == "__main__":
    main()
