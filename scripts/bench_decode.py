r"""How fast decoding is, how far from the hardware's limit, and how many rows fit.

    python scripts/bench_decode.py --shape llama-3.1-8b --batches 1 8 32 96
    python scripts/bench_decode.py --shape llama-3.1-8b --kvpress_python kvpress-env/bin/python \
        --methods kvpress-knorm H2O+slide transformers-dynamic transformers-static-compiled
    python scripts/bench_decode.py --shape llama-3.1-8b --largest_batch --memory_gb 80
    torchrun --nproc_per_node 2 scripts/bench_decode.py --shape llama-3.1-8b --tensor_parallel

Prints a table, each row when it is measured, and as the last line the same as JSON. Methods run in
the order given, kvpress' first; one that is named twice tells how far the machine drifts. The floor
of a step is the time that copying as many bytes takes as it must read: every weight but the
embedding, and every cached key and value, once each; of a method that reads a part of its cache at
most steps, what it reads on average. Weights of a named shape are random; the tokens mean nothing,
the speed is the same.

The largest batch is one that lasts to the end of the output. SCOPE's slots are allocated with the
first prompt, so a few steps tell; transformers' caches begin just short of their last token, and
the static one is not compiled; kvpress decodes past a cut, before which it holds most. Peers are
not charged for reading prompts.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
import yaml
from bench_measure import (
    STEPS_TO_FIT,
    Decoding,
    Timing,
    add_arguments,
    check_arguments,
    copy_bandwidth,
    limit_memory,
    load_model,
    rows,
)
from bench_peers import PEERS, full_cache
from torch import Tensor
from transformers import PreTrainedModel

from scope import Compression, ScopeError, patch
from scope.generation.session import Session
from scope.harness.ranks import process_group
from scope.kernels import argmax
from scope.methods.api import Score
from scope.registry import SCORES, find

_BETWEEN = "-between"
_KVPRESS = ("kvpress-knorm", "kvpress-snapkv")
_BLOCKS = 5
_PEER_STEPS = 50  # a full cache takes up to 0.1 s a step


def main() -> None:
    args = _arguments()
    with process_group() if args.tensor_parallel else nullcontext():
        _bench(args)


def _bench(args: argparse.Namespace) -> None:
    compressions = _compressions(args)
    limit_memory(args)
    if args.largest_batch:  # a batch that leaves no room for recording its steps does not fit
        warnings.filterwarnings("error", "decoding without a CUDA graph")
    bandwidth = copy_bandwidth(args.device)
    limit = f" of which {args.memory_gb} GB may be used" if args.memory_gb is not None else ""
    print(
        f"{torch.cuda.get_device_name() if args.device == 'cuda' else platform.machine()}{limit}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; copies at "
        f"{bandwidth / 1e12:.2f} TB/s; {args.shape or args.model_path} in {args.dtype}, prompt "
        f"{args.prompt_length}, C {args.max_capacity_prompt}, W {args.decoding_window_size}, "
        f"R {args.decoding_recent_size}, T {args.max_new_tokens}"
        + ("" if args.largest_batch else f", from step {args.start}")
    )
    columns = _BATCH_COLUMNS if args.largest_batch else _SPEED_COLUMNS
    print(_line(columns, {name: name for name in columns}), flush=True)
    results = []
    for row in _rows(args, compressions, bandwidth):
        results.append(row)
        print(_line(columns, row), flush=True)
    print(json.dumps({**vars(args), "copy_bytes_per_second": bandwidth, "results": results}))


_SPEED_COLUMNS = {
    "method": 29,
    "batch": 5,
    "ms_per_step": 11,
    "tokens_per_s": 12,
    "floor_ms": 8,
    "share_of_floor": 14,
    "peak_gb": 7,
    "kv_mb_per_row": 13,
    "capture_s": 9,
}
_BATCH_COLUMNS = {
    "method": 29,
    "largest_batch": 13,
    "kv_mb_per_row": 13,
    "peak_gb": 7,
    "search_s": 8,
}


def _line(columns: dict[str, int], row: dict[str, Any]) -> str:
    cells = [f"{row.get(name, '-'):>{width}}" for name, width in columns.items()]
    return "  ".join([*cells, row.get("error", "")]).rstrip()


def _compressions(args: argparse.Namespace) -> dict[str, Compression]:
    """Those of our methods."""
    compressions = {}
    for method in args.methods:
        if method not in (*PEERS, *_KVPRESS):
            names, *given = method.split(",")
            compressor, strategy, *score = names.split("+")
            options = dict(_option(method, text) for text in given)
            sizes = {
                "max_capacity_prompt": args.max_capacity_prompt,
                "decoding_window_size": args.decoding_window_size,
                "decoding_recent_size": args.decoding_recent_size,
            }
            compressions[method] = Compression.from_shared(
                compressor,
                strategy,
                decoding_score=_score(*score) if score else None,
                must_read=options,
                **(sizes | options),
            )
    return compressions


def _option(method: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ScopeError(f"--methods {method}: expected NAME=VALUE after the comma, not {text!r}")
    return name, yaml.safe_load(value)


def _score(name: str) -> str | type[Score]:
    """A score by its name; with ``-between``, as if no kernel knew it."""
    known = name.removesuffix(_BETWEEN)
    if known == name:
        return name
    score = find(SCORES, known, "score")
    return type(score.__name__, (score,), {"kernel": None, "name": name})


def _rows(
    args: argparse.Namespace, compressions: dict[str, Compression], bandwidth: float
) -> Iterator[dict[str, Any]]:
    kvpress = [method for method in args.methods if method in _KVPRESS]
    if kvpress:  # first, while the whole GPU is free
        yield from _kvpress_rows(args, kvpress)
    others = [method for method in args.methods if method not in _KVPRESS]
    if not others:
        return
    model = load_model(args)
    for method in others:
        if method in PEERS:
            timing = Timing(3, _BLOCKS, min(args.steps, _PEER_STEPS) // _BLOCKS)
            start = _peer(args, model, method, timing)
        else:
            timing = Timing(args.start, _BLOCKS, args.steps // _BLOCKS)
            start = partial(_ours, args, model, compressions[method])
        yield from rows(args, model, method, start, timing, bandwidth)


def _kvpress_rows(args: argparse.Namespace, methods: list[str]) -> Iterator[dict[str, Any]]:
    command = shlex.split(args.kvpress_python)
    command += [str(Path(__file__).with_name("bench_kvpress.py")), "--methods", *methods]
    command += ["--batches", *map(str, args.batches)]
    for name in (
        "shape",
        "model_path",
        "prompt_length",
        "max_capacity_prompt",
        "decoding_window_size",
        "memory_gb",
        "dtype",
        "device",
    ):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    if args.largest_batch:
        command.append("--largest_batch")
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise ScopeError(
            f"--kvpress_python {args.kvpress_python} does not run ({error.strerror}); expected the "
            "python of an environment made as scripts/bench_kvpress.py says"
        ) from None
    with process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        yield {"method": "kvpress", "error": f"ended with exit code {process.returncode}"}


def _peer(
    args: argparse.Namespace, model: PreTrainedModel, method: str, timing: Timing
) -> partial[Decoding]:
    """A full cache that is at step ``start`` already; for the largest batch, at its last steps."""
    steps = STEPS_TO_FIT if args.largest_batch else timing.all_steps
    done = args.max_new_tokens - steps if args.largest_batch else args.start
    return partial(
        full_cache,
        model,
        method,
        tokens=args.prompt_length + done,
        steps=steps,
        compiled=not args.largest_batch,
    )


@torch.inference_mode()
def _ours(
    args: argparse.Namespace, model: PreTrainedModel, compression: Compression, batch: int
) -> Decoding:
    random = torch.Generator().manual_seed(0)
    shape = (batch, args.prompt_length)
    prompts = torch.randint(model.config.vocab_size, shape, generator=random)
    with patch(model):
        session = Session(model, compression, prompts.tolist(), args.max_new_tokens)
        if args.largest_batch:
            _fill_slots(session, model, prompts)
            choice = prompts[:, 0]
        else:
            choice = session.prefill().argmax(dim=-1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        cache, lengths = session.cache, session.cache.schedule.now.lengths
        read = cache.recipe.strategy.read

        def kv_bytes() -> tuple[int, int]:
            """Read by a step, and allocated."""
            share = read(lengths).sum() / lengths.sum()
            return int(cache.held_bytes().sum() * share), cache.kv_bytes

        yield kv_bytes
        while True:
            started = time.perf_counter()
            choice = argmax(session.step(choice))
            yield time.perf_counter() - started


def _fill_slots(session: Session, model: PreTrainedModel, prompts: Tensor) -> None:
    """Read two prompts, and of the others one token each, at once.

    All rows have the slots that the longest prompt needs, and the second prompt is read when they
    are taken: more prompts would need no more memory.
    """
    every_row = torch.arange(len(prompts))
    for some, length in ((every_row[:1], None), (every_row[1:2], None), (every_row[2:], 1)):
        if len(some):
            session.cache.admit(some.tolist())
            tokens = prompts[some, :length].to(model.device)
            model(input_ids=tokens, past_key_values=session.cache, use_cache=True, logits_to_keep=1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_arguments(parser)
    methods = (
        f"COMPRESSOR+STRATEGY[+SCORE[{_BETWEEN}]][,OPTION=VALUE...], or one of "
        f"{', '.join((*PEERS, *_KVPRESS))}; {_BETWEEN} runs the score in torch between two kernels"
    )
    parser.add_argument("--methods", nargs="+", default=["H2O+slide"], help=methods)
    parser.add_argument("--decoding_recent_size", type=int, default=256)
    parser.add_argument("--max_new_tokens", type=int, default=8192)
    parser.add_argument("--start", type=int, default=600, help="step at which timing begins")
    parser.add_argument("--steps", type=int, default=100, help="steps timed, in blocks")
    parser.add_argument(
        "--tensor_parallel",
        action="store_true",
        help="split the shape over the processes that torchrun --nproc_per_node N has started; "
        "bytes and floor are those of one",
    )
    parser.add_argument(
        "--kvpress_python",
        metavar="COMMAND",
        help="runs the python of kvpress' own environment, made as scripts/bench_kvpress.py says",
    )
    args = parser.parse_args()
    check_arguments(parser, args)
    for method in args.methods:
        if method not in (*PEERS, *_KVPRESS) and method.count("+") not in (1, 2):
            parser.error(f"--methods {method}: expected {methods}")
        if method in _KVPRESS and args.kvpress_python is None:
            parser.error(
                f"--methods {method} runs in an environment of its own: make it as "
                "scripts/bench_kvpress.py says and give its python as --kvpress_python"
            )
    if args.start + args.steps > args.max_new_tokens:
        parser.error("--start and --steps together must not exceed --max_new_tokens")
    if args.start < 3 or args.steps < _BLOCKS:
        parser.error(f"--start must be at least 3 and --steps at least {_BLOCKS}")
    return args


if __name__ == "__main__":
    try:
        main()
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
