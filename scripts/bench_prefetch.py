"""EXPERIMENT: what a decode step gains where kernels fetch later weights into L2.

    PYTHONPATH=. python scripts/bench_prefetch.py [--seconds 97] [--configs 0 1 2 3 4]

Run from the repository's root, on one H100.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
import traceback
from functools import partial

STARTED = time.perf_counter()
sys.path.insert(0, "scripts")

import torch
import triton
import triton.language as tl
from bench_measure import SHAPES, copy_bandwidth
from transformers import LlamaConfig, LlamaForCausalLM

from scope import Compression, patch
from scope.generation.fused import fused_step
from scope.generation.graph import Graphed
from scope.generation.session import Session
from scope.kernels import argmax
from scope.kernels.triton import ahead

PROMPT, NEW, START = 3000, 8192, 520
SMALL, LARGE = "qwen2.5-1.5b", "llama-3.1-8b"
CONFIGS = [(SMALL, 1), (SMALL, 43), (SMALL, 8), (LARGE, 1), (LARGE, 32)]
ALL = 1e3  # MB


def say(text):
    print(f"[{time.perf_counter() - STARTED:5.1f}] {text}", flush=True)


def build(shape, device, layers=None):
    torch.manual_seed(0)
    settings = dict(SHAPES[shape], bos_token_id=None, eos_token_id=None)
    settings["num_hidden_layers"] = layers or settings["num_hidden_layers"]
    with torch.device(device), torch.inference_mode(False):
        return LlamaForCausalLM._from_config(
            LlamaConfig(**settings), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()


def new_session(model, batch, prompt=PROMPT):
    compression = Compression.from_shared(
        "H2O", "slide", max_capacity_prompt=2048, decoding_window_size=512, decoding_recent_size=256
    )
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (batch, prompt), generator=random)
    return Session(model, compression, prompts.tolist(), NEW)


def switch(session, mode, sites):
    """Let the next steps be recorded anew."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    ahead.MODE, ahead.SITES = mode, sites
    session.__dict__["_fast"] = Graphed(partial(fused_step, session.model, session.cache))


# --- one process per configuration and mode compiles in advance -----------------------------------


def warm(shape, batch, modes):
    model = build(shape, "cuda", layers=1)
    with patch(model), torch.inference_mode():
        session = new_session(model, batch)
        session.admit(0, 0)
        for mode in modes:
            switch(session, mode, {})
            argmax(session.step(torch.zeros(batch, dtype=torch.int64)))
    torch.cuda.synchronize()


def start_warming(configs):
    def started(*words):
        command = [sys.executable, __file__, "--warm", *words]
        quiet = subprocess.DEVNULL
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)

    return [
        started(shape, str(batch), *modes)
        for shape, batch in configs
        for modes in (["off"], ["line", "bulk"])
    ]


def wait_for(processes, until):
    for process in processes:
        try:
            process.wait(max(0.1, until - (time.perf_counter() - STARTED)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    say(f"compiled in advance, exit codes {[process.returncode for process in processes]}")


# --- does an instruction fetch, and what does it cost ---------------------------------------------


@triton.jit
def _fetch(ptr, stride, size, runs, THREADS: tl.constexpr, MODE: tl.constexpr):
    ahead._fetch_region(
        ptr, stride, size, runs, tl.program_id(0), tl.num_programs(0), THREADS, MODE
    )


@triton.jit
def _spin(out_ptr, count):
    value = tl.load(out_ptr)
    for _ in range(count):
        value = value * 0.999 + 0.5
    tl.store(out_ptr, value)


@triton.jit
def _read(ptr, out_ptr, count, BLOCK: tl.constexpr):
    own = tl.cdiv(tl.cdiv(count, tl.num_programs(0)), BLOCK) * BLOCK
    first = tl.program_id(0) * own
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, own, BLOCK):
        place = first + start + tl.arange(0, BLOCK)
        total += tl.load(ptr + place, mask=place < count, other=0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total))


def graph_time(function, replays=5):
    """The least milliseconds of a replay."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)


def micro():
    """Print µs of fetching and then reading 8 MB, of 64 regions in turn; return the better mode."""
    size, regions = 2**23, 64
    data = torch.zeros(regions, size // 4, dtype=torch.int32, device="cuda")
    out, value = torch.zeros(264, dtype=torch.int32, device="cuda"), torch.zeros(1, device="cuda")

    def run(mode, step, reads):
        for region in data:
            if mode == "read":
                _read[264,](region, out, size // 4, BLOCK=4096, num_warps=8)
            else:
                many = size // step if mode else 0
                instruction = mode or "line"
                _fetch[264,](region, step, step if mode else 0, many, THREADS=128, MODE=instruction)
            _spin[1,](value, 2000, num_warps=1)
            if reads:
                _read[264,](region, out, size // 4, BLOCK=4096, num_warps=8)

    with_read = {}
    for name, mode, step in (
        ("nothing", None, 512),
        ("read twice", "read", 512),
        ("line of 128 B", "line", 512),
        ("line of 64 B", "line", 64),
        ("line of 32 B", "line", 32),
        ("bulk of 512 B", "bulk", 512),
        ("bulk of 4096 B", "bulk", 4096),
    ):
        whole, alone = (
            graph_time(partial(run, mode, step, reads)) * 1e3 / regions for reads in (True, False)
        )
        with_read[name] = whole
        say(
            f"micro | {name:>14} | fetch + spin {alone:6.2f} us | read after {whole - alone:6.2f} us"
        )
    better = with_read["bulk of 512 B"] < 0.98 * with_read["line of 128 B"]
    say(f"micro | mode in what follows: {'bulk' if better else 'line'}")
    return "bulk" if better else "line"


# --- steps ----------------------------------------------------------------------------------------

O = ("o", 0, ALL)


def beginning(name, to, start=0):
    return (name, start, to)


def gate_up(to, start=0):
    return ("gate_up", start, to)


C1 = {
    "finishing": (O, gate_up(8)),
    "gate_up": (("down", 0, 4),),
    "down": (("qkv", 0, 7),),
}
C2 = {**C1, "norm": (gate_up(14, 8),)}
C3 = {"attention_beside": (O, gate_up(8)), "gate_up": C1["gate_up"], "down": C1["down"]}
C4 = {**C1, "o": (gate_up(14, 8),)}
C5 = {
    "attention_beside": (O, gate_up(16)),
    "gate_up": (("down", 0, 12),),
    "norm_before_qkv": (("qkv", 0, 7),),
}
COMBINED = {
    "c1": C1,
    "c1 + norm: gate_up 8-14": C2,
    "c1, attention beside": C3,
    "c1 + o: gate_up 8-14": C4,
    "deep": C5,
}


def single(site, *targets):
    return site, {site: targets}


ONE_SITE_1 = [
    single("finishing", O),
    single("finishing", O, gate_up(4)),
    single("finishing", O, gate_up(8)),
    single("finishing", O, gate_up(16)),
    single("norm", gate_up(4)),
    single("norm", gate_up(8)),
    single("gate_up", ("down", 0, 2)),
    single("gate_up", ("down", 0, 4)),
    single("gate_up", ("down", 0, 8)),
    single("gate_up", ("down", 0, 12)),
    single("down", ("qkv", 0, 4)),
    single("down", ("qkv", 0, 7)),
    single("norm_before_qkv", ("qkv", 0, 7)),
    single("attention_beside", O),
    single("attention_beside", O, gate_up(8)),
    single("attention_beside", O, gate_up(16)),
    single("attention", O, gate_up(8)),
    single("o", gate_up(4)),
    single("o", gate_up(8)),
    single("qkv", O),
    single("qkv", O, gate_up(8)),
]
ONE_SITE_MORE = [
    single("finishing", O),
    single("finishing", O, gate_up(4)),
    single("finishing", O, gate_up(12)),
    single("norm", gate_up(8)),
    single("gate_up", ("down", 0, 4)),
    single("gate_up", ("down", 0, 8)),
    single("down", ("qkv", 0, 7)),
    single("norm_before_qkv", ("qkv", 0, 7)),
    single("attention", O, gate_up(8)),
    single("attention_beside", O, gate_up(8)),
    single("o", gate_up(6)),
]
ONE_SITE_LARGE = [
    single("finishing", ("o", 0, 8)),
    single("finishing", ("o", 0, 16)),
    single("norm", gate_up(8)),
    single("gate_up", ("down", 0, 4)),
    single("gate_up", ("down", 0, 8)),
    single("down", ("qkv", 0, 4)),
    single("down", ("qkv", 0, 10)),
    single("norm_before_qkv", ("qkv", 0, 8)),
    single("attention", ("o", 0, 8)),
    single("o", gate_up(6)),
]


def described(sites):
    return "; ".join(
        f"{site}: " + " + ".join(
            f"{name} {start:g}-{to:g}" if start else name if to == ALL else f"{name} {to:g}"
            for name, start, to in targets
        )
        for site, targets in sites.items()
    )  # fmt: skip


class Bench:
    def __init__(self, model, shape, batch, seconds):
        self.name, self.seconds = f"{shape} b{batch}", seconds
        self.session = new_session(model, batch)
        self.choice = self.session.prefill().argmax(dim=-1)
        self.blocks, self.steps = (3, 50) if shape == SMALL else (3, 25)
        self.off = []

    def step(self):
        logits = self.session.step(self.choice)
        self.choice = argmax(logits)
        return logits

    def go_to_start(self):
        """Decode up to the first step that is timed: its logits and all tokens."""
        tokens = []
        for _ in range(START):
            logits = self.step()
            tokens.append(self.choice)
        return logits.clone(), torch.stack(tokens)

    def left(self):
        return self.seconds - (time.perf_counter() - STARTED)

    def time(self, mode, sites, label=None):
        """Milliseconds a step, or None where no time is left."""
        if self.left() < 3:
            return None
        switch(self.session, mode, sites)
        for _ in range(4):
            self.step()
        means = []
        for _ in range(self.blocks):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(self.steps):
                self.step()
            end.record()
            end.synchronize()
            means.append(begin.elapsed_time(end) / self.steps)
        taken = sorted(means)[len(means) // 2]
        if mode is None:
            self.off.append(taken)
        off = sum(self.off) / len(self.off)
        fetched = " ".join(f"{site} {ahead.megabytes(site):.1f}" for site in sites)
        say(
            f"{self.name} | {label or described(sites) or mode or 'off'} | {taken:.4f} ms "
            f"({min(means):.4f}-{max(means):.4f}) | {100 * (taken / off - 1):+.2f} % | MB: {fetched}"
        )
        return taken

    def run(self, mode, one_site, combined):
        """Time all; the best sites."""
        self.time(None, {}, "off")
        self.time(mode, {}, "the code, nothing fetched")
        best = {}  # by what is fetched: gain, sites
        for label, sites in combined.items():
            taken = self.time(mode, sites, label)
            if taken is not None and taken < best.get("all", (taken + 1,))[0]:
                best["all"] = taken, sites
        self.time(None, {}, "off")
        for site, sites in one_site:
            if (taken := self.time(mode, sites)) is None:
                break
            last = sites[site][-1][0]
            group = "gate_up" if last == "o" else last
            if taken < best.get(group, (0.997 * sum(self.off) / len(self.off),))[0]:
                best[group] = taken, sites
        found = {}
        for group, (_, sites) in best.items():
            if group != "all":
                found |= sites
        if found:
            taken = self.time(mode, found, "best of each target: " + described(found))
            if taken is not None and taken < best.get("all", (taken + 1,))[0]:
                best["all"] = taken, found
        self.time(None, {}, "off")
        return best.get("all", (0, {}))[1]

    def profile(self, mode, sites):
        """Print µs of each kernel of a layer, and of the gap before it."""
        from torch.profiler import ProfilerActivity, profile

        switch(self.session, mode, sites)
        for _ in range(5):
            self.step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(5):
                self.step()
            torch.cuda.synchronize()
        events = [
            (event.start_ns(), event.duration_ns(), event.name())
            for event in found.profiler.kineto_results.events()
            if str(event.device_type()).endswith("CUDA")
        ]
        labels = ["attend", "finish", "o", "norm", "gate_up", "down", "norm", "qkv"]
        kernels, place, before = {}, 99, None
        for start, duration, name in sorted(events):
            place = 0 if name.startswith("_attend") else place + 1
            if place < len(labels):
                gap = start - before if before is not None else 0
                kernels.setdefault(f"{labels[place]}.{place}", []).append((duration, gap))
            before = start + duration
        lines = [
            f"{label} {sum(d for d, _ in all_) / len(all_) / 1e3:.2f} (gap "
            f"{sorted(g for _, g in all_)[len(all_) // 2] / 1e3:.2f})"
            for label, all_ in kernels.items()
        ]
        say(f"{self.name} | profile, {described(sites) or 'off'} | us: " + ", ".join(lines))


def checked(model, shape, batch, mode, seconds):
    """A bench at its first step; says whether fetching changes a bit in the steps before."""
    plain = Bench(model, shape, batch, seconds)
    switch(plain.session, None, {})
    logits, tokens = plain.go_to_start()
    if shape == SMALL:
        ahead.MODE, ahead.SITES = None, {}
        other = Bench(model, shape, batch, seconds)
        switch(other.session, mode, C2)
        own_logits, own_tokens = other.go_to_start()
        same = torch.equal(logits, own_logits), torch.equal(tokens, own_tokens)
        say(
            f"{plain.name} | check, {START} steps with c1 + norm: logits equal {same[0]}, tokens {same[1]}"
        )
    return plain


def or_else(function, otherwise):
    """What comes after a failure is still worth running."""
    try:
        return function()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        say("failed, see above")
        return otherwise


def main(seconds, configs):
    warming = start_warming(configs)
    model = build(SMALL, "cuda")
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    wait_for(warming, until=45)
    say(f"copies at {copy_bandwidth('cuda') / 1e12:.2f} TB/s")
    mode = or_else(micro, "line")
    torch.cuda.empty_cache()
    kept, best = None, {}
    with torch.inference_mode():
        with patch(model):
            for shape, batch in configs:
                if shape == LARGE:
                    continue
                one_site = {1: ONE_SITE_1, 43: ONE_SITE_MORE, 8: ONE_SITE_MORE[:-3]}[batch]
                bench = checked(model, shape, batch, mode, seconds)
                found = bench.run(mode, one_site, COMBINED)
                other = "line" if mode == "bulk" else "bulk"
                bench.time(other, found, f"the best, by {other}")
                if batch == 1:
                    kept, best = bench, found
                ahead.MODE, ahead.SITES = None, {}
            large(mode, seconds - 5, configs)
            if kept is not None and kept.left() > 4:
                for sites in ({}, best):
                    or_else(partial(kept.profile, mode if sites else None, sites), None)
    say("done")


def large(mode, seconds, configs):
    configs = [config for config in configs if config[0] == LARGE]
    if not configs or seconds - (time.perf_counter() - STARTED) < 8:
        return
    model = build(LARGE, "cuda")
    with patch(model):
        for shape, batch in configs:
            if seconds - (time.perf_counter() - STARTED) < 10:
                return
            bench = checked(model, shape, batch, mode, seconds)
            bench.run(mode, ONE_SITE_LARGE, {})
            ahead.MODE, ahead.SITES = None, {}
            del bench
            gc.collect()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=97)
    parser.add_argument("--configs", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--warm", nargs="+")
    arguments = parser.parse_args()
    if arguments.warm:
        name, rows, *names = arguments.warm
        warm(name, int(rows), [None if one == "off" else one for one in names])
    else:
        main(arguments.seconds, [CONFIGS[number] for number in arguments.configs])
        sys.stdout.flush()
        os._exit(0)
