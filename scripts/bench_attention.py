r"""What both kernels of decode attention take a layer, by the plan in use and by others.

    python scripts/bench_attention.py --shape qwen2.5-1.5b --batches 43 96 130
    python scripts/bench_attention.py --shape qwen2.5-1.5b --batches 130 --method ALLKV \
        --prompt_lengths 1800 7200 --ended 0.4 --plans 2x32s3w1f4 4x32s3w1f2 1x64s3w2f4

`4x32s3w1f2` are four splits, in blocks of 32 slots, with 3 stages and 1 warp, and 2 warps in the
second kernel. Prompts are evenly as long as the lengths given, from row to row; a share of the rows
may have ended. Steps are launched one by one, and kernels timed by torch's profiler. The floor is
the time that a copy takes for the keys and values held.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from bench_measure import SHAPES, copy_bandwidth
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from scope import Compression, ScopeError, patch
from scope.generation.fused import fused_step
from scope.generation.session import Session
from scope.kernels import argmax

if TYPE_CHECKING:  # Triton is not everywhere
    from scope.kernels.triton.plan import Plan

_LAYERS, _VOCABULARY = 4, 2048  # enough for a time, and little to prefill
_STEPS = 5
_PLAN = re.compile(r"(\d+)x(\d+)s(\d+)w(\d+)f(\d+)")
_KERNELS = ("_attend", "_finish")


def main() -> int:
    args = _arguments()
    try:
        plans = [_plan(text) for text in args.plans]
        if not torch.cuda.is_available():
            raise ScopeError("torch sees no GPU here, and the kernels are timed on one")
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shape = SHAPES[args.shape] | {"num_hidden_layers": _LAYERS, "vocab_size": _VOCABULARY}
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=torch.bfloat16).eval()
    bandwidth = copy_bandwidth("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {bandwidth / 1e12:.2f} TB/s")
    print("batch  plan                     attend  finish  both, us a layer  floor", flush=True)
    for batch in args.batches:
        for name, attend, finish, held in _timed(args, model, batch, plans):
            floor = held / bandwidth * 1e6
            print(
                f"{batch:5}  {name:23} {attend:7.1f} {finish:7.1f} {attend + finish:17.1f} "
                f"{floor:6.1f}",
                flush=True,
            )
    return 0


@torch.inference_mode()
def _timed(
    args: argparse.Namespace, model: PreTrainedModel, batch: int, plans: list[tuple[int, ...]]
) -> Iterator[tuple[str, float, float, float]]:
    """Plan, microseconds of both kernels, and bytes, each of one layer."""
    from scope.kernels.triton import attention

    own = attention.plan_of
    compression = Compression.from_shared(
        args.method, "slide", max_capacity_prompt=2048, decoding_window_size=512
    )
    lengths = np.linspace(args.prompt_lengths[0], args.prompt_lengths[-1], batch).astype(int)
    prompts = [[1] * length for length in lengths.tolist()]
    with patch(model):
        session = Session(model, compression, prompts, args.start + 4096)
        choice = session.prefill().argmax(dim=-1)
        for _ in range(args.start):
            choice = argmax(session.step(choice))
        for row in np.linspace(0, batch - 1, round(args.ended * batch)).astype(int).tolist():
            session.release(row)
        seen: list[Plan] = []

        def in_use(*given: Any) -> "Plan":
            seen.append(own(*given))
            return seen[-1]

        def steps() -> None:
            for _ in range(_STEPS):
                session.cache.begin_forward(batch, 1, None, model.device)
                fused_step(model, session.cache, choice)
            torch.cuda.synchronize()

        def timed(plan_of: "Callable[..., Plan]") -> list[float]:
            with mock.patch.object(attention, "plan_of", plan_of):
                steps()  # compiles
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    steps()
            spent = {event.key: event.device_time_total for event in profiler.key_averages()}
            return [spent[kernel] / _STEPS / _LAYERS for kernel in _KERNELS]

        attend, finish = timed(in_use)
        held = float(session.cache.held_bytes().sum()) / _LAYERS
        yield f"{_text(seen[-1])} in use", attend, finish, held
        for splits, block, stages, warps, finishing in plans:
            forced = replace(
                seen[-1],
                splits=splits,
                compact_splits=0,
                block=block,
                stages=stages,
                warps=warps,
                finishing_warps=finishing,
            )
            attend, finish = timed(lambda *given, forced=forced: forced)
            yield _text(forced), attend, finish, held


def _plan(text: str) -> tuple[int, ...]:
    if (found := _PLAN.fullmatch(text)) is None:
        raise ScopeError(f"--plans {text}: expected splits, block, stages and warps as 4x32s3w1f2")
    return tuple(map(int, found.groups()))


def _text(plan: "Plan") -> str:
    sizes = f"{plan.splits}x{plan.block}s{plan.stages}w{plan.warps}"
    return f"{sizes}f{plan.finishing_warps}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", required=True, choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 96])
    parser.add_argument("--method", default="H2O", help="prefill compressor, C 2048")
    parser.add_argument("--prompt_lengths", nargs="+", type=int, default=[3000])
    parser.add_argument("--ended", type=float, default=0.0, help="share of the rows")
    parser.add_argument("--start", type=int, default=520, help="step from which is timed")
    parser.add_argument("--plans", nargs="*", default=[], help="to be forced")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
