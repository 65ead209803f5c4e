# ruff: noqa: ANN202
"""Six products and norms of a decoder layer in one persistent kernel, against separate launches.

    PYTHONPATH=. python bench.py            # on one H100, at most 100 s
    PYTHONPATH=. python bench.py --compile  # on any machine: compile for sm_90, print resources
    PYTHONPATH=. TRITON_INTERPRET=1 python bench.py --interpret  # phases one by one, on a CPU

Every variant is checked against `linear_in_parts`, `add_and_norm`, `gated_linear` and `linear` as a
decode step chains them, then timed: layers one after the other in a CUDA graph, attention left out.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import triton
import triton.language as tl

OUTPUT, NORM, GATE_UP, DOWN, NEXT_NORM, QKV = range(6)
THREADS = 128


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    attended: int
    intermediate: int
    qkv: int
    layers: int
    bias: bool


SHAPES = {
    "1.5b": Shape("1.5b", 1536, 1536, 8960, 2048, 28, True),
    "8b": Shape("8b", 4096, 4096, 14336, 6144, 16, False),
    "tiny": Shape("tiny", 256, 128, 512, 384, 2, True),
}


@dataclass(frozen=True)
class Variant:
    """One way to run a layer.

    Phases from first to last are one launch, the others the project's own kernels. Megabytes are
    fetched into L2 before the wait for the phase named; `early` lets programs fetch for others, so
    that those without work begin at once; `lines` fetches lines of 128 bytes instead of runs;
    `everyone` normalises every row in every program. With
    `idle`, two kernels that wait 4 us each stand between the layers of both ways, as attention does
    at one row; at the end of a launch so many megabytes of the next layer are fetched then.
    """

    shape: str
    rows: int
    first: int = OUTPUT
    last: int = QKV
    per_processor: int = 2
    cooperative: bool = True
    everyone: bool = False
    early: bool = False
    lines: bool = False
    gate_up_mb: float = 8.0
    down_mb: float = 8.0
    qkv_mb: float = 8.0
    idle: bool = False
    next_output_mb: float = 0.0
    next_gate_up_mb: float = 0.0

    def label(self) -> str:
        names = ["o", "norm", "gate_up", "down", "norm2", "qkv"]
        fetched = f"{self.gate_up_mb:g}/{self.down_mb:g}/{self.qkv_mb:g} MB"
        return (
            f"{self.shape} rows {self.rows:2d} {names[self.first]}..{names[self.last]} "
            f"x{self.per_processor} fetch {fetched}"
            f"{' early' if self.early else ''}{' lines' if self.lines else ''}{' everyone' if self.everyone else ''}"
            f"{'' if self.cooperative else ' not-cooperative'}"
            f"{' idle' if self.idle else ''}"
            + (
                f" next {self.next_output_mb:g}/{self.next_gate_up_mb:g} MB"
                if self.next_output_mb
                else ""
            )
        )


# ------------------------------------------------------------------------------------------ kernel


@triton.jit
def _arrive(counter_ptr):
    """Tell the others that this program is done; what it takes to wait for them."""
    tl.debug_barrier()
    # Together 2^31: a round turns the highest bit, whatever stood there.
    step = tl.where(tl.program_id(0) == 0, 2147483647 - (tl.num_programs(0) - 2), 1)
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred p;
        .reg .b32 t;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        mov.u32 $0, 0;
        @p atom.add.release.gpu.global.u32 $0, [$1], $2;
        }
        """,
        "=&r,l,r",
        [counter_ptr, step],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _wait(counter_ptr, ticket):
    """Wait until every program has arrived: the counter's highest bit has turned."""
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred p;
        .reg .b32 t;
        mov.u32 $0, 0;
        mov.u32 t, %tid.x;
        setp.ne.u32 p, t, 0;
        @p bra DONE;
        AGAIN:
        ld.acquire.gpu.global.u32 t, [$1];
        xor.b32 t, t, $2;
        setp.ge.s32 p, t, 0;
        @p bra AGAIN;
        DONE:
        }
        """,
        "=&r,l,r",
        [counter_ptr, ticket],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.debug_barrier()


@triton.jit
def _fetch_lines(ptrs):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [ptrs],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _fetch(
    weight_ptr,
    tile,
    skip,
    size,
    width: tl.constexpr,
    depth: tl.constexpr,
    PARTS: tl.constexpr,
    GATED: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    LINES: tl.constexpr,
):
    """Bring the beginning of a tile into L2: every thread asks for so many bytes of one row.

    Some bytes of each row may be skipped where a thread has a row of its own.
    """
    HEIGHT: tl.constexpr = WIDTH * (2 if GATED else 1)
    blocks: tl.constexpr = width // WIDTH
    if (size > 0) & (tile < blocks * PARTS):
        lane = tl.arange(0, LANES)
        row = lane % HEIGHT
        column = (tile % blocks) * WIDTH + row % WIDTH
        if GATED:
            column += (row // WIDTH) * width
        part = tile // blocks
        start_ptr = weight_ptr + column.to(tl.int64) * depth + part * (depth // PARTS)
        start_ptr += (lane // HEIGHT) * (size // 2) + skip // 2
        if LINES:
            for offset in tl.range(0, size, 128, num_stages=1):
                _fetch_lines(start_ptr + offset // 2)
        else:
            tl.inline_asm_elementwise(
                "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
                "=r,l,r",
                [start_ptr, size],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def _product(
    x_ptr,
    weight_ptr,
    bias_ptr,
    output_ptr,
    rows,
    width: tl.constexpr,
    depth: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """This program's tiles of a product; see `scope.kernels.triton.linear._linear`."""
    part_depth: tl.constexpr = depth // PARTS
    blocks: tl.constexpr = width // WIDTH
    row = tl.arange(0, ROWS)
    exists = (row < rows)[None, :]
    for tile in tl.range(tl.program_id(0), blocks * PARTS, tl.num_programs(0), num_stages=1):
        part = tile // blocks
        column = (tile % blocks) * WIDTH + tl.arange(0, WIDTH)
        k = part * part_depth + tl.arange(0, DEPTH)
        x_ptrs = x_ptr + row[None, :] * depth + k[:, None]
        weight_ptrs = weight_ptr + column[:, None].to(tl.int64) * depth + k[None, :]
        output = tl.zeros((WIDTH, ROWS), tl.float32)
        up = tl.zeros((WIDTH, ROWS), tl.float32)
        for start in tl.range(0, part_depth, DEPTH, num_stages=STAGES):
            weight = tl.load(weight_ptrs + start)
            x = tl.load(x_ptrs + start, mask=exists, other=0.0, cache_modifier=".cg")
            output = tl.dot(weight, x, output)
            if GATED:
                up = tl.dot(tl.load(weight_ptrs + width * depth + start), x, up)
        if BIAS:
            bias = tl.load(bias_ptr + column).to(tl.float32)
            output += tl.where(part == 0, bias, 0.0)[:, None]
        if GATED:
            output = output * tl.sigmoid(output) * up
        places = (part * rows + row)[None, :] * width + column[:, None]
        tl.store(output_ptr + places, output.to(output_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _norm(
    row,
    hidden_ptr,
    sum_ptr,
    branch_ptr,
    gain_ptr,
    output_ptr,
    rows,
    epsilon,
    keeper,
    width: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of `add_and_norm`, its sum kept apart from what it read."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0)
    hidden = tl.load(hidden_ptr + place, mask=inside, other=0.0, cache_modifier=".cg")
    branch = tl.load(branch_ptr + place, mask=inside, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, PARTS):
        part_ptr = branch_ptr + part * rows * width
        branch += tl.load(part_ptr + place, mask=inside, other=0.0, cache_modifier=".cg")
    hidden += branch.to(hidden.dtype)
    tl.store(sum_ptr + place, hidden, mask=column < tl.where(keeper == row, width, 0))
    wide = hidden.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / width + epsilon)
    tl.store(output_ptr + place, normed.to(hidden.dtype) * gain, mask=inside)


@triton.jit
def _norms(
    hidden_ptr,
    sum_ptr,
    branch_ptr,
    gain_ptr,
    normed_ptr,
    rows,
    epsilon,
    width: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EVERYONE: tl.constexpr,
):
    pid = tl.program_id(0)
    if EVERYONE:
        own_ptr = normed_ptr + pid * rows * width
        for row in tl.range(0, rows, num_stages=1):
            _norm(
                row,
                hidden_ptr,
                sum_ptr,
                branch_ptr,
                gain_ptr,
                own_ptr,
                rows,
                epsilon,
                pid,
                width,
                PARTS,
                BLOCK,
            )
        tl.debug_barrier()
    else:
        for row in tl.range(pid, rows, tl.num_programs(0), num_stages=1):
            _norm(
                row,
                hidden_ptr,
                sum_ptr,
                branch_ptr,
                gain_ptr,
                normed_ptr,
                rows,
                epsilon,
                row,
                width,
                PARTS,
                BLOCK,
            )


@triton.jit(
    do_not_specialize=[
        "rows",
        "gate_up_skip",
        "gate_up_size",
        "down_size",
        "qkv_size",
        "next_output_size",
        "early",
    ]
)
def _layer(
    counter_ptr,
    attended_ptr,
    hidden_ptr,
    between_ptr,
    normed_ptr,
    output_parts_ptr,
    inner_ptr,
    down_parts_ptr,
    qkv_ptr,
    output_weight_ptr,
    gain_ptr,
    gate_up_ptr,
    down_ptr,
    next_gain_ptr,
    qkv_weight_ptr,
    qkv_bias_ptr,
    next_output_ptr,
    next_gate_up_ptr,
    rows,
    epsilon,
    gate_up_skip,
    gate_up_size,
    down_size,
    qkv_size,
    next_output_size,
    early,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    EVERYONE: tl.constexpr,
    HIDDEN: tl.constexpr,
    ATTENDED: tl.constexpr,
    INTERMEDIATE: tl.constexpr,
    WIDTH_QKV: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUT_PARTS: tl.constexpr,
    OUTPUT_DEPTH: tl.constexpr,
    OUTPUT_STAGES: tl.constexpr,
    GATE_UP_TILE: tl.constexpr,
    GATE_UP_DEPTH: tl.constexpr,
    GATE_UP_STAGES: tl.constexpr,
    DOWN_PARTS: tl.constexpr,
    DOWN_DEPTH: tl.constexpr,
    DOWN_STAGES: tl.constexpr,
    QKV_TILE: tl.constexpr,
    QKV_DEPTH: tl.constexpr,
    QKV_STAGES: tl.constexpr,
    LANES: tl.constexpr,
    LINES: tl.constexpr,
):
    pid = tl.program_id(0)
    # Whose tile this program fetches before it waits: its own, or that of its opposite, which has
    # less to do the more there is to do here.
    fetched = tl.where(early != 0, tl.num_programs(0) - 1 - pid, pid)
    own_ptr = normed_ptr + (pid * rows * HIDDEN if EVERYONE else 0)

    if FIRST < LAST and pid == tl.num_programs(0) - 1:
        line = tl.minimum(tl.arange(0, LANES) * 64, HIDDEN - 64)
        _fetch_lines(gain_ptr + line)
        _fetch_lines(next_gain_ptr + line)
        if BIAS:
            _fetch_lines(qkv_bias_ptr + tl.minimum(tl.arange(0, LANES) * 64, WIDTH_QKV - 64))

    if FIRST <= 0:
        _product(
            attended_ptr, output_weight_ptr, output_weight_ptr, output_parts_ptr, rows,
            HIDDEN, ATTENDED, OUTPUT_PARTS, False, False, ROWS, 64, OUTPUT_DEPTH, OUTPUT_STAGES,
        )  # fmt: skip
    if FIRST <= 0 and LAST >= 1:
        ticket = _arrive(counter_ptr)
        if LAST >= 2:
            _fetch(
                gate_up_ptr, fetched, gate_up_skip, gate_up_size,
                INTERMEDIATE, HIDDEN, 1, True, GATE_UP_TILE, LANES, LINES,
            )  # fmt: skip
        _wait(counter_ptr, ticket)
    if FIRST <= 1 and LAST >= 1:
        _norms(
            hidden_ptr, between_ptr, output_parts_ptr, gain_ptr, normed_ptr, rows, epsilon,
            HIDDEN, OUTPUT_PARTS, BLOCK, EVERYONE,
        )  # fmt: skip
    if FIRST <= 1 and LAST >= 2 and not EVERYONE:
        ticket = _arrive(counter_ptr)
        _wait(counter_ptr, ticket)
    if FIRST <= 2 and LAST >= 2:
        _product(
            own_ptr, gate_up_ptr, gate_up_ptr, inner_ptr, rows,
            INTERMEDIATE, HIDDEN, 1, False, True, ROWS, GATE_UP_TILE, GATE_UP_DEPTH, GATE_UP_STAGES,
        )  # fmt: skip
    if FIRST <= 2 and LAST >= 3:
        ticket = _arrive(counter_ptr)
        _fetch(
            down_ptr, fetched, 0, down_size,
            HIDDEN, INTERMEDIATE, DOWN_PARTS, False, 64, LANES, LINES,
        )  # fmt: skip
        _wait(counter_ptr, ticket)
    if FIRST <= 3 and LAST >= 3:
        _product(
            inner_ptr, down_ptr, down_ptr, down_parts_ptr, rows,
            HIDDEN, INTERMEDIATE, DOWN_PARTS, False, False, ROWS, 64, DOWN_DEPTH, DOWN_STAGES,
        )  # fmt: skip
    if FIRST <= 3 and LAST >= 4:
        ticket = _arrive(counter_ptr)
        if LAST >= 5:
            _fetch(
                qkv_weight_ptr, fetched, 0, qkv_size,
                WIDTH_QKV, HIDDEN, 1, False, QKV_TILE, LANES, LINES,
            )  # fmt: skip
        _wait(counter_ptr, ticket)
    if FIRST <= 4 and LAST >= 4:
        _norms(
            between_ptr, hidden_ptr, down_parts_ptr, next_gain_ptr, normed_ptr, rows, epsilon,
            HIDDEN, DOWN_PARTS, BLOCK, EVERYONE,
        )  # fmt: skip
    if FIRST <= 4 and LAST >= 5 and not EVERYONE:
        ticket = _arrive(counter_ptr)
        _wait(counter_ptr, ticket)
    if FIRST <= 5 and LAST >= 5:
        _product(
            own_ptr, qkv_weight_ptr, qkv_bias_ptr, qkv_ptr, rows,
            WIDTH_QKV, HIDDEN, 1, BIAS, False, ROWS, QKV_TILE, QKV_DEPTH, QKV_STAGES,
        )  # fmt: skip
        # What waits for attention, which leaves the memory idle at few rows.
        _fetch(
            next_output_ptr, pid, 0, next_output_size,
            HIDDEN, ATTENDED, OUTPUT_PARTS, False, 64, LANES, LINES,
        )  # fmt: skip
        _fetch(
            next_gate_up_ptr, pid, 0, gate_up_skip,
            INTERMEDIATE, HIDDEN, 1, True, GATE_UP_TILE, LANES, LINES,
        )  # fmt: skip


@triton.jit
def _spin(cycles):
    """Wait."""
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred p;
        .reg .u64 begin, now;
        mov.u64 begin, %clock64;
        AGAIN:
        mov.u64 now, %clock64;
        sub.u64 now, now, begin;
        cvt.u32.u64 $0, now;
        setp.lt.u32 p, $0, $1;
        @p bra AGAIN;
        }
        """,
        "=&r,r",
        [cycles],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _rounds(counter_ptr, marks_ptr, wrong_ptr, ROUNDS: tl.constexpr):
    """Barriers alone: each round every program marks its place and looks at another's."""
    pid = tl.program_id(0)
    other = (pid + tl.num_programs(0) // 2 + 1) % tl.num_programs(0)
    wrong = 0
    for turn in tl.range(ROUNDS, num_stages=1):
        tl.store(marks_ptr + pid, turn)
        ticket = _arrive(counter_ptr)
        _wait(counter_ptr, ticket)
        seen = tl.load(marks_ptr + other, cache_modifier=".cg")
        wrong += tl.where((seen == turn) | (seen == turn + 1), 0, 1)
    tl.atomic_add(wrong_ptr, wrong)


# -------------------------------------------------------------------------------------------- host

PROCESSORS = 132  # of an H100; read again where there is a GPU
SHARED = 227 * 1024


@dataclass(frozen=True)
class Plan:
    """Constants of a variant's kernel: the tiles of the separate kernels, and what they leave."""

    constants: dict[str, Any]
    sizes: tuple[int, int, int, int, int]


def plan(variant: Variant) -> Plan:
    shape = SHAPES[variant.shape]
    height = max(16, triton.next_power_of_2(variant.rows))
    room = SHARED // variant.per_processor - 3 * 1024

    def stages(width: int, depth: int) -> int:
        return max(2, min(8, room // ((width + height) * depth * 2)))

    def parts(depth: int) -> int:
        most = min(8, PROCESSORS * 64 // shape.hidden)
        fitting = (n for n in range(most, 1, -1) if depth % (128 * n) == 0)
        return next(fitting, 1)

    output_parts, down_parts = parts(shape.attended), parts(shape.intermediate)
    if shape.qkv > 32 * PROCESSORS:
        qkv_tile, qkv_depth = 64, 128
    else:
        qkv_tile, qkv_depth = 16, 256 if height == 16 else 128
    tile = 64

    def size(megabytes: float, tiles: int, rows: int, part_depth: int) -> int:
        """Bytes for each of the 128 threads that fetch a tile of so many rows."""
        chunks = THREADS // rows
        wanted = round(megabytes * 1e6 / tiles / THREADS / 128) * 128
        return min(wanted, part_depth * 2 // chunks // 16 * 16)

    gate_up_tiles = shape.intermediate // tile
    skip = size(variant.next_gate_up_mb, gate_up_tiles, 2 * tile, shape.hidden)
    sizes = (
        skip,
        min(
            size(variant.gate_up_mb, gate_up_tiles, 2 * tile, shape.hidden),
            shape.hidden * 2 - skip,
        ),
        size(
            variant.down_mb,
            shape.hidden // 64 * down_parts,
            64,
            shape.intermediate // down_parts,
        ),
        size(variant.qkv_mb, shape.qkv // qkv_tile, qkv_tile, shape.hidden),
        size(
            variant.next_output_mb,
            shape.hidden // 64 * output_parts,
            64,
            shape.attended // output_parts,
        ),
    )
    constants = {
        "FIRST": variant.first,
        "LAST": variant.last,
        "EVERYONE": variant.everyone,
        "HIDDEN": shape.hidden,
        "ATTENDED": shape.attended,
        "INTERMEDIATE": shape.intermediate,
        "WIDTH_QKV": shape.qkv,
        "BIAS": shape.bias,
        "BLOCK": triton.next_power_of_2(shape.hidden),
        "ROWS": height,
        "OUTPUT_PARTS": output_parts,
        "OUTPUT_DEPTH": 128,
        "OUTPUT_STAGES": stages(64, 128),
        "GATE_UP_TILE": tile,
        "GATE_UP_DEPTH": 64,
        "GATE_UP_STAGES": stages(2 * tile, 64),
        "DOWN_PARTS": down_parts,
        "DOWN_DEPTH": 128,
        "DOWN_STAGES": stages(64, 128),
        "QKV_TILE": qkv_tile,
        "QKV_DEPTH": qkv_depth,
        "QKV_STAGES": stages(qkv_tile, qkv_depth),
        "LANES": THREADS,
        "LINES": variant.lines,
    }
    return Plan(constants, sizes)


EPSILON = 1e-6


def attend() -> None:
    """As long as attention takes at one row, and as idle."""
    for _ in range(2):
        _spin[32,](7000, num_warps=4)



class Model:
    """Random layers, and the two ways through them."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device = shape, device
        torch.manual_seed(0)

        def weight(n: int, k: int) -> torch.Tensor:
            return torch.randn(n, k, device=device, dtype=torch.bfloat16).mul_(k**-0.5)

        def gain() -> torch.Tensor:
            return 1 + 0.1 * torch.randn(shape.hidden, device=device, dtype=torch.bfloat16)

        self.layers = [
            {
                "output": weight(shape.hidden, shape.attended),
                "gain": gain(),
                "gate_up": weight(2 * shape.intermediate, shape.hidden),
                "down": weight(shape.hidden, shape.intermediate),
                "next_gain": gain(),
                "qkv": weight(shape.qkv, shape.hidden),
                "bias": torch.randn(shape.qkv, device=device, dtype=torch.bfloat16),
            }
            for _ in range(shape.layers)
        ]
        self.bytes = sum(t.nbytes for t in self.layers[0].values())
        self.counter = torch.zeros(1, dtype=torch.int32, device=device)

    def inputs(self, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the first layer, and what each layer attended."""
        torch.manual_seed(seed)
        hidden = torch.randn(rows, self.shape.hidden, device=self.device, dtype=torch.bfloat16)
        attended = torch.randn(rows, self.shape.attended, device=self.device, dtype=torch.bfloat16)
        return hidden, attended

    def separate(
        self,
        layer: dict[str, Any],
        hidden: torch.Tensor,
        attended: torch.Tensor,
        warps: int | None = None,
    ) -> torch.Tensor:
        """As a step does it; with so many warps in a norm, whose order of summing they change."""
        from scope.kernels.triton.linear import gated_linear, linear, linear_in_parts
        from scope.kernels.triton.pointwise import _add_and_norm, add_and_norm as as_it_is

        def add_and_norm(
            hidden: torch.Tensor, branch: torch.Tensor, gain: torch.Tensor, epsilon: float
        ) -> torch.Tensor:
            if warps is None:
                return as_it_is(hidden, branch, gain, epsilon)
            rows, width = hidden.shape
            output, block = torch.empty_like(hidden), triton.next_power_of_2(width)
            constants = {"BLOCK": block, "PARTS": branch.shape[0], "num_warps": warps}
            _add_and_norm[rows,](hidden, branch, gain, output, width, epsilon, **constants)
            return output

        branch = linear_in_parts(attended, layer["output"])
        normed = add_and_norm(hidden, branch, layer["gain"], EPSILON)
        branch = linear_in_parts(gated_linear(normed, layer["gate_up"]), layer["down"])
        normed = add_and_norm(hidden, branch, layer["next_gain"], EPSILON)
        return linear(normed, layer["qkv"], layer["bias"] if self.shape.bias else None)

    def buffers(self, variant: Variant, programs: int) -> dict[str, torch.Tensor]:
        shape, rows, constants = self.shape, variant.rows, plan(variant).constants
        copies = programs if variant.everyone else 1

        def empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.full(sizes, float("nan"), dtype=dtype, device=self.device)

        return {
            "between": empty(rows, shape.hidden),
            "normed": empty(copies, rows, shape.hidden),
            "output_parts": empty(
                constants["OUTPUT_PARTS"], rows, shape.hidden, dtype=torch.float32
            ),
            "inner": empty(rows, shape.intermediate),
            "down_parts": empty(constants["DOWN_PARTS"], rows, shape.hidden, dtype=torch.float32),
        }

    def launch(
        self,
        variant: Variant,
        layer: dict[str, Any],
        buffers: dict[str, torch.Tensor],
        hidden: torch.Tensor,
        attended: torch.Tensor,
        first: int,
        last: int,
        following: dict[str, Any],
    ) -> torch.Tensor:
        made = plan(variant)
        qkv = hidden.new_empty(variant.rows, self.shape.qkv)
        options = {"launch_cooperative_grid": True} if variant.cooperative else {}
        _layer[(PROCESSORS * variant.per_processor,)](
            self.counter,
            attended,
            hidden,
            buffers["between"],
            buffers["normed"],
            buffers["output_parts"],
            buffers["inner"],
            buffers["down_parts"],
            qkv,
            layer["output"],
            layer["gain"],
            layer["gate_up"],
            layer["down"],
            layer["next_gain"],
            layer["qkv"],
            layer["bias"],
            following["output"],
            following["gate_up"],
            variant.rows,
            EPSILON,
            *made.sizes,
            int(variant.early),
            **{**made.constants, "FIRST": first, "LAST": last},
            num_warps=THREADS // 32,
            **options,
        )
        return qkv

    def through(
        self,
        variant: Variant,
        buffers: dict[str, torch.Tensor],
        hidden: torch.Tensor,
        attended: torch.Tensor,
    ) -> list[torch.Tensor]:
        """What all layers project; an even number of them changes the residual stream in place."""
        from scope.kernels.triton.linear import linear, linear_in_parts
        from scope.kernels.triton.pointwise import add_and_norm

        outs, b = [], dict(buffers)
        for layer, following in zip(self.layers, [*self.layers[1:], self.layers[0]], strict=True):
            if variant.first == GATE_UP:
                branch = linear_in_parts(attended, layer["output"])
                b["normed"] = add_and_norm(hidden, branch, layer["gain"], EPSILON)
            qkv = self.launch(
                variant, layer, b, hidden, attended, variant.first, variant.last, following
            )
            if variant.last == DOWN:
                if variant.first == OUTPUT:
                    hidden, b["between"] = b["between"], hidden
                normed = add_and_norm(hidden, b["down_parts"], layer["next_gain"], EPSILON)
                qkv = linear(normed, layer["qkv"], layer["bias"] if self.shape.bias else None)
            outs.append(qkv)
            if variant.idle:
                attend()
        return outs


# --------------------------------------------------------------------------------- what to measure


def variants() -> list[Variant]:
    """Most promising first."""
    listed = []
    for rows in (1, 43, 8):
        base = Variant("1.5b", rows)
        listed += [base, replace(base, gate_up_mb=0, down_mb=0, qkv_mb=0)]
    one = Variant("1.5b", 1)
    eight = Variant("1.5b", 8)
    many = Variant("1.5b", 43)
    listed += [
        replace(one, everyone=True),
        replace(one, idle=True),
        replace(one, idle=True, next_output_mb=5),
        replace(one, idle=True, next_output_mb=5, next_gate_up_mb=9),
        replace(one, idle=True, next_output_mb=5, next_gate_up_mb=18),
        replace(one, lines=True),
        replace(one, early=True),
        replace(one, gate_up_mb=4, down_mb=4),
        replace(one, gate_up_mb=14, down_mb=14),
        replace(one, everyone=True, early=True),
        replace(one, cooperative=False),
        replace(one, first=GATE_UP, last=DOWN),
        replace(one, last=DOWN),
        replace(many, first=GATE_UP, last=DOWN),
        replace(many, last=DOWN),
        replace(many, early=True),
        replace(many, gate_up_mb=4, down_mb=4),
        replace(many, gate_up_mb=14, down_mb=14),
        replace(eight, everyone=True),
        replace(eight, early=True),
        replace(eight, first=GATE_UP, last=DOWN),
        replace(one, per_processor=1),
        replace(many, per_processor=1),
    ]
    for rows in (1, 32):
        base = Variant("8b", rows)
        listed += [
            base,
            replace(base, gate_up_mb=0, down_mb=0, qkv_mb=0),
            replace(base, first=GATE_UP, last=DOWN),
        ]
    return listed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--measure", type=int)
    parser.add_argument("--warm", type=int)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=95)
    args = parser.parse_args()
    if args.compile:
        compile_all()
    elif args.interpret:
        interpret()
    elif args.measure is not None:
        measure(args.measure, args.rehearse)
    elif args.warm is not None:
        warm(args.warm)
    else:
        supervise(args.seconds, args.rehearse)


_WARMERS = 7
_PATIENCE = 15.0  # seconds without a line after which a variant is taken to hang


def supervise(seconds: float, rehearse: bool) -> None:
    """Let children measure; one that says nothing for long is ended, and the next goes on."""
    began = time.monotonic()
    me = [sys.executable, "-u", os.path.abspath(__file__)]
    warmers: list[subprocess.Popen[bytes]] = []
    following, total = 0, len(variants()) + 1
    while following < total and time.monotonic() - began < seconds:
        child = subprocess.Popen(
            [*me, "--measure", str(following), *(["--rehearse"] if rehearse else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def read(child: subprocess.Popen[str] = child, lines: Any = lines) -> None:
            for line in child.stdout or ():
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        heard, patience, why = time.monotonic(), 60.0, ""  # the first includes starting
        while True:
            now = time.monotonic()
            if now - began > seconds:
                why = "out of time"
                break
            if now - heard > patience:
                why = "hangs"
                break
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                why = "ended"
                break
            heard = time.monotonic()
            if not warmers and not rehearse:
                # Each compiles some kernels into Triton's cache on disk, beside what is measured.
                warmers = [
                    subprocess.Popen(
                        [*me, "--warm", str(n)],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                    for n in range(_WARMERS)
                ]
            if line.startswith("#begin "):
                following, patience = int(line.split()[1]) + 1, _PATIENCE
            elif line.startswith("#done"):
                following, why = total, "done"
            else:
                print(f"{now - began:5.1f}s {line}", end="", flush=True)
        if child.poll() is None and why != "done":
            child.kill()
        if why in ("hangs", "ended") and following < total:
            name = name_of(following - 1) if following else "the start"
            print(f"{time.monotonic() - began:5.1f}s {why.upper()} in: {name}", flush=True)
            if not following:
                break
        elif why == "out of time":
            break
    for warmer in warmers:
        if warmer.poll() is None:
            warmer.kill()
    print(f"{time.monotonic() - began:5.1f}s end, {following} of {total} begun", flush=True)


def launch_arguments(variant: Variant) -> tuple[list[Any], dict[str, Any]]:
    """As `Model.fused` passes them, with types in the place of tensors."""
    bf16, f32 = torch.bfloat16, torch.float32
    made = plan(variant)
    pointers = [torch.int32, bf16, bf16, bf16, bf16, f32, bf16, f32, *[bf16] * 10]
    options = {"launch_cooperative_grid": True} if variant.cooperative else {}
    keywords = {**made.constants, "num_warps": THREADS // 32, **options}
    return [*pointers, variant.rows, EPSILON, *made.sizes, int(variant.early)], keywords


def kernels() -> list[Variant]:
    """One variant of each kernel that is compiled."""
    chosen: dict[str, Variant] = {}
    for variant in variants():
        key = json.dumps([plan(variant).constants, variant.cooperative])
        chosen.setdefault(key, variant)
    return list(chosen.values())


def warm(number: int) -> None:
    _read_device()
    for variant in kernels()[number::_WARMERS]:
        positional, keywords = launch_arguments(variant)
        _layer.warmup(*positional, grid=(PROCESSORS * variant.per_processor,), **keywords)


def _read_device() -> None:
    global PROCESSORS
    PROCESSORS = torch.cuda.get_device_properties(0).multi_processor_count


def measure(first: int, rehearse: bool) -> None:
    """Print a line per variant from this one on; 0 is the barrier alone."""
    if rehearse:
        for number in range(first, len(variants()) + 1):
            print(f"#begin {number}", flush=True)
            if number == 3:
                time.sleep(1000)
            if number == 6:
                raise RuntimeError("as an illegal address would")
            print(f"{name_of(number)}: rehearsed", flush=True)
        print("#done", flush=True)
        return
    _read_device()
    bandwidth = copy_bandwidth()
    print(
        f"{torch.cuda.get_device_name()}, {PROCESSORS} processors, triton {triton.__version__}, "
        f"copies at {bandwidth / 1e12:.2f} TB/s",
        flush=True,
    )
    if first == 0:
        print("#begin 0", flush=True)
        barriers()
    model: Model | None = None
    separate: dict[tuple[int, bool], tuple[float, list[torch.Tensor]]] = {}
    for number, variant in enumerate(variants(), 1):
        if number < first:
            continue
        print(f"#begin {number}", flush=True)
        shape = SHAPES[variant.shape]
        if model is None or model.shape is not shape:
            model, separate = None, {}
            model = Model(shape, "cuda")
        key = variant.rows, variant.idle
        if key not in separate:
            separate[key] = baseline(model, *key)
            print(
                f"{shape.name} rows {variant.rows:2d} SEPARATE{' idle' if variant.idle else ''} "
                f"{separate[key][0]:6.2f} us a layer (floor {model.bytes / bandwidth * 1e6:.2f})",
                flush=True,
            )
        try:
            print(one_line(model, variant, *separate[key]), flush=True)
        except Exception as error:
            text = str(error).replace("\n", " ")[:400]
            print(f"{variant.label()}: FAILED {type(error).__name__}: {text}", flush=True)
            torch.cuda.synchronize()  # raises, and so ends this process, if the device is lost
    print("#done", flush=True)


def name_of(number: int) -> str:
    return variants()[number - 1].label() if number else "barriers alone"


def barriers() -> None:
    """How long a barrier takes, and whether it lets anybody through too early."""
    counter, wrong = torch.zeros(2, dtype=torch.int32, device="cuda").split(1)
    for per_processor in (1, 2):
        for cooperative in (True, False):
            programs = PROCESSORS * per_processor
            marks = torch.full((programs,), -1, dtype=torch.int32, device="cuda")
            counter.zero_()
            options = {"launch_cooperative_grid": True} if cooperative else {}
            taken = {}
            for rounds in (10, 210):

                def work(rounds: int = rounds, options: Any = options) -> list[torch.Tensor]:
                    _rounds[programs,](counter, marks, wrong, ROUNDS=rounds, num_warps=4, **options)
                    return []

                taken[rounds] = timed(work)[0]
            print(
                f"barrier of {programs} programs{'' if cooperative else ', not cooperative'}: "
                f"{(taken[210] - taken[10]) / 200:.2f} us, kernel of 10 {taken[10]:.1f} us; "
                f"{int(wrong)} seen wrong",
                flush=True,
            )


def baseline(model: Model, rows: int, idle: bool) -> tuple[float, list[torch.Tensor]]:
    """Time a layer takes in separate kernels, and what they give, norms summed by four warps."""
    hidden, attended = model.inputs(rows, 1)
    outs = [model.separate(layer, hidden, attended, 4) for layer in model.layers]
    expected = [hidden.clone(), *outs]

    def work() -> list[torch.Tensor]:
        given = []
        for layer in model.layers:
            given.append(model.separate(layer, hidden, attended))
            if idle:
                attend()
        return given

    return timed(work)[0] / len(model.layers), expected


def one_line(model: Model, variant: Variant, own: float, expected: list[torch.Tensor]) -> str:
    buffers = model.buffers(variant, PROCESSORS * variant.per_processor)
    model.counter.zero_()
    start, attended = model.inputs(variant.rows, 1)
    hidden = start.clone()
    began = time.monotonic()
    outs = [t.clone() for t in model.through(variant, buffers, hidden, attended)]
    first = [hidden.clone(), *outs]
    first_s = time.monotonic() - began
    taken, replay, kept = timed(lambda: model.through(variant, buffers, hidden, attended))
    # A barrier that lets through would not give the same again and again.
    unlike = 0
    for _ in range(20):
        hidden.copy_(start)
        replay()
        for a, b in zip([hidden, *kept], first, strict=True):
            unlike += int((a != b).sum())
    differing = [int((a != b).sum()) for a, b in zip(first, expected, strict=True)]
    total = sum(t.numel() for t in expected)
    worst = max(_error(a, b) for a, b in zip(first, expected, strict=True))
    taken /= len(model.layers)
    return (
        f"{variant.label()}: {taken:6.2f} us a layer, separate {own:6.2f} ({taken - own:+.2f}); "
        f"differ {differing[0]} hidden, {sum(differing[1:])} of {total}, error {worst:.1e}, "
        f"between replays {unlike}; first {first_s:.1f} s"
    )


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative; infinite where something is no number."""
    error = float((got.float() - wanted.float()).norm() / wanted.float().norm())
    return error if error == error else float("inf")


def timed(work: Any) -> tuple[float, Any, list[torch.Tensor]]:
    """Microseconds of a replay, the median of 20, how to replay, and what the work gave."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return median(times), graph.replay, kept


def copy_bandwidth() -> float:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * 2**30 / (begin.elapsed_time(end) * 1e-3)


# ------------------------------------------------------------------------------- without a GPU


def compile_all() -> None:
    """Compile every kernel for an H100 and print what it takes."""
    import re

    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class H100:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(H100())
    bin_dir = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin")
    for variant in kernels():
        positional, keywords = launch_arguments(variant)
        began = time.monotonic()
        compiled = _layer.warmup(
            *positional, grid=(PROCESSORS * variant.per_processor,), **keywords
        )
        seconds = time.monotonic() - began
        name = f"/tmp/persistent/{len(os.listdir('/tmp/persistent'))}"
        with open(f"{name}.cubin", "wb") as file:
            file.write(compiled.asm["cubin"])
        with open(f"{name}.ptx", "w") as file:
            file.write(compiled.asm["ptx"])
        usage = subprocess.run(
            [f"{bin_dir}/cuobjdump", "-res-usage", f"{name}.cubin"], capture_output=True, text=True
        )
        found = re.search(r"REG:(\d+) STACK:(\d+).*", usage.stdout + usage.stderr)
        shared = compiled.metadata.shared
        fits = shared <= (SHARED - 1024 * variant.per_processor) // variant.per_processor
        stages = {k: v for k, v in keywords.items() if "STAGES" in k}
        print(
            f"{variant.label()}: {found.group(0)[:40] if found else usage.stderr[:200]}; shared "
            f"{shared} {'fits' if fits else 'TOO MUCH'}; {stages}; {variant and positional[-4:]}; "
            f"{seconds:.1f} s; {name}",
            flush=True,
        )


def interpret() -> None:
    """The tiny shape, phase by phase, in Triton's interpreter."""
    from unittest import mock

    import scope.kernels.triton.linear as module

    global PROCESSORS
    PROCESSORS = 6
    with (
        mock.patch.object(module, "processors", return_value=PROCESSORS),
        mock.patch.object(module, "shared_memory", return_value=SHARED),
    ):
        model = Model(SHAPES["tiny"], "cpu")
        for everyone, rows in ((False, 1), (False, 5), (False, 43), (True, 1), (True, 5)):
            if rows:
                variant = Variant("tiny", rows, per_processor=1, cooperative=False, everyone=everyone)
                buffers = model.buffers(variant, PROCESSORS)
                wanted_hidden, attended = model.inputs(rows, 1)
                hidden = wanted_hidden.clone()
                for layer in model.layers:
                    wanted = model.separate(layer, wanted_hidden, attended)
                    for phase in range(6):
                        got = model.launch(
                            variant, layer, buffers, hidden, attended, phase, phase, layer
                        )
                    print(
                        everyone,
                        rows,
                        int((got != wanted).sum()),
                        int((hidden != wanted_hidden).sum()),
                        float((got.float() - wanted.float()).norm() / wanted.float().norm()),
                    )


if __name__ == "__main__":
    main()
