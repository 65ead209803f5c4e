# ruff: noqa: ANN202  (what a kernel returns, Triton knows)
"""EXPERIMENT: a kernel fetches into L2 the beginning of the weights that a later product reads.

Module-level knobs, switched between recordings: `MODE` is None (the code is not there), ``line`` or
``bulk``; `SITES` names for each site up to two targets with MB from and MB to.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from scope.kernels import processors

MODE: str | None = None
SITES: dict[str, tuple[tuple[str, float, float], ...]] = {}
BESIDE = 132  # programs that only fetch, where a kernel has too few of its own

NAMES = ["a_stride", "a_bytes", "a_runs", "b_stride", "b_bytes", "b_runs", "own_programs"]


@dataclass(frozen=True)
class _Target:
    weight: Tensor
    parts: int
    first: int  # rows that the first wave of programs reads; of gate and of up each
    gated: bool


_targets: dict[str, _Target] = {}
_site_of: dict[int, str] = {}  # by the address of a weight or a gain


def layer_begins(rows: int, **weights: Tensor) -> None:
    """Names what lies ahead: targets o, gate_up, down, qkv (of the next layer), and sites."""
    if MODE is None:
        return
    for name, weight in weights.items():
        if name.startswith("site_"):
            _site_of[weight.data_ptr()] = name.removeprefix("site_")
        else:
            _site_of[weight.data_ptr()] = "head" if weight.shape[0] > 100_000 else name
            _targets[name] = _target(name, weight, rows)


def _target(name: str, weight: Tensor, rows: int) -> _Target:
    from scope.kernels.triton import linear

    x = weight.new_empty(0, weight.shape[1])
    count, width, parts = processors(weight.device), weight.shape[0], 1
    if name in ("o", "down"):
        parts = linear._parts(linear._Tile(64, 128, stages=6), x, width)
    if name == "gate_up":
        half = width // 2
        first = half if half < 1.5 * 64 * count or rows > 64 else min(half, 64 * count)
        return _Target(weight, parts, first, gated=True)
    return _Target(weight, parts, min(width, 64 * count) if name == "qkv" else width, False)


def site(weight: Tensor) -> str:
    return _site_of.get(weight.data_ptr(), "")


def arguments(name: str, own_programs: int, like: Tensor) -> list[Any]:
    """What a kernel takes of a site: two regions of runs, and how many programs are its own."""
    regions = [region for target in SITES.get(name, ()) for region in _regions(*target)]
    if len(regions) > 2:
        raise ValueError(f"{name}: more than two regions")
    regions += [(like, 128, 0, 0)] * (2 - len(regions))
    return [*regions[0], *regions[1], own_programs]


def _regions(name: str, from_mb: float, to_mb: float) -> list[tuple[Tensor, int, int, int]]:
    if (target := _targets.get(name)) is None:
        return []
    weight, parts = target.weight, target.parts
    stride = weight.shape[1] * weight.itemsize // parts
    rows = target.first * (2 if target.gated else 1)
    begin = int(from_mb * 1e6 / (rows * parts)) // 128 * 128
    end = min(stride, -(-int(to_mb * 1e6 / (rows * parts)) // 128) * 128)
    if end <= begin:
        return []
    starts = [0]
    if target.gated and target.first * 2 < len(weight):
        rows, starts = target.first, [0, len(weight) // 2]
    return [
        (weight[start:, begin // weight.itemsize :], stride, end - begin, rows * parts)
        for start in starts
    ]


def megabytes(name: str) -> float:
    """What a site fetches, with the layer named last."""
    regions = [region for target in SITES.get(name, ()) for region in _regions(*target)]
    return sum(size * runs for _, _, size, runs in regions) / 1e6


@triton.jit
def fetch_ahead(
    a_ptr, a_stride, a_bytes, a_runs,
    b_ptr, b_stride, b_bytes, b_runs,
    program, programs,
    THREADS: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """This program's share of two regions: of so many runs, the first bytes of each stride."""
    _fetch_region(a_ptr, a_stride, a_bytes, a_runs, program, programs, THREADS, MODE)
    _fetch_region(b_ptr, b_stride, b_bytes, b_runs, program, programs, THREADS, MODE)


@triton.jit
def _fetch_region(
    ptr, stride, size, runs, program, programs, THREADS: tl.constexpr, MODE: tl.constexpr
):
    # Neighbouring runs go to different programs, so that each has as many.
    own = tl.cdiv(runs - program, programs)
    if size > 0:
        if MODE == "bulk":
            for first in range(0, own, THREADS):
                run = first + tl.arange(0, THREADS)
                place = (program + programs * run).to(tl.int64) * stride
                _bulk(ptr.to(tl.int64) + place, run < own, size)
        else:
            lane = tl.arange(0, 4)[None, :] * 128
            for first in range(0, own, THREADS // 4):
                run = first + tl.arange(0, THREADS // 4)[:, None]
                place = (program + programs * run).to(tl.int64) * stride
                for start in range(0, size, 512):
                    byte = start + lane
                    _line(ptr.to(tl.int64) + place + byte, (run < own) & (byte < size))


@triton.jit
def _line(address, wanted):
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [address, wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _bulk(address, wanted, size):
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0;"
        " @p cp.async.bulk.prefetch.L2.global [$1], $3; mov.u32 $0, 0; }",
        "=r,l,r,r",
        [address, wanted.to(tl.int32), tl.full(wanted.shape, 0, tl.int32) + size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
