"""What compressing a prompt costs beside the model's own reading of it, in time and memory.

    python scripts/bench_prefill.py --shape llama-3.1-8b --prompt_lengths 4096 32768 131072

Prints a table, and as the last line the same as JSON. `transformers` is the same model with its own
`DynamicCache`; overhead is what a method takes longer than that. A batch's row reads the prompt
again and again, as in a job, so that nothing is allocated; host_s of its seconds went by until all
was launched. Operations are those of the model's own products: two per weight of a layer and token,
and causal attention; the floor is the time that they take at the rate of one large product. After
a method's name, `-own-layers` reads through the model's own layers, `-launched` launches those of
decode steps one by one, where a short prompt would be a graph, and `-two-passes` does not tell the
method what the rows of attention sum up to.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from bench_measure import add_model_arguments, check_model_arguments, load_model, synchronize
from transformers import DynamicCache, PreTrainedModel

from scope import Compression, ScopeError, patch
from scope.attention import interface
from scope.generation import reading
from scope.generation.session import Session
from scope.harness.floor import measured_rates

PEER = "transformers"
_TWO_PASSES, _OWN_LAYERS, _LAUNCHED = "-two-passes", "-own-layers", "-launched"
_REPEATS = 5
_RECORDING = 2  # readings of a prompt until there is a graph of it
_ENOUGH = 20.0  # seconds of readings that tell the time of one; so long a prompt is no graph

# Given prompts, what reads one of them by its index.
_Reader = Callable[[Sequence[list[int]]], AbstractContextManager[Callable[[int], object]]]


def main() -> None:
    args = _arguments()
    compressions = {
        method: Compression.from_shared(
            method.removesuffix(_TWO_PASSES).removesuffix(_OWN_LAYERS).removesuffix(_LAUNCHED),
            None,
            max_capacity_prompt=args.max_capacity_prompt,
            window_size=args.window_size,
        )
        for method in args.methods
    }
    model = load_model(args)
    print(
        f"{torch.cuda.get_device_name() if args.device == 'cuda' else platform.machine()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"{args.shape or args.model_path} in {model.dtype}, C {args.max_capacity_prompt}, "
        f"w {args.window_size}; median of {_REPEATS}, or of those that begin within {_ENOUGH:.0f} s"
    )
    print(_line(*_COLUMNS), flush=True)
    readers: dict[str, _Reader] = {PEER: partial(_own_reader, model)}
    for method, compression in compressions.items():
        readers[method] = partial(_our_reader, model, compression, method)
    results = []
    with patch(model):
        for length in args.prompt_lengths:
            own_seconds = None
            for method, reader in readers.items():
                result = {"prompt_length": length, "method": method}
                try:
                    result |= _measure(args, model, reader, length)
                except torch.OutOfMemoryError:
                    result["error"] = "out of memory"
                seconds = result.get("seconds")
                if method == PEER:
                    own_seconds = seconds
                elif seconds and own_seconds:
                    result["overhead_percent"] = round(100 * (seconds / own_seconds - 1), 1)
                results.append(result)
                print(_line(*(result.get(name, "-") for name in _COLUMNS)), flush=True)
                if args.device == "cuda":
                    torch.cuda.empty_cache()
    print(json.dumps({**vars(args), "results": results}))


_COLUMNS = {
    "prompt_length": 13,
    "method": 17,
    "seconds": 9,
    "host_s": 9,
    "tokens_per_s": 12,
    "tflop_per_s": 11,
    "share_of_floor": 14,
    "overhead_percent": 16,
    "peak_gb": 7,
    "beside_weights_gb": 17,
}


def _line(*cells: object) -> str:
    return "  ".join(
        f"{cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)
    )


def _seconds(args: argparse.Namespace, work: Callable[[], object]) -> tuple[float, float]:
    """Until the work was launched, and until it was done."""
    synchronize(args.device)
    started = time.perf_counter()
    work()
    launched = time.perf_counter() - started
    synchronize(args.device)
    return launched, time.perf_counter() - started


def _measure(
    args: argparse.Namespace, model: PreTrainedModel, reader: _Reader, length: int
) -> dict[str, float]:
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (length,), generator=random).tolist()
    times, host_times = [], []
    # Kernels are not compiled for one length; twice C is enough for something to be compressed.
    short = prompt[: 2 * args.max_capacity_prompt]
    with reader([*[prompt] * (_RECORDING + _REPEATS), short]) as read:
        read(-1)
        warm_up = 0.0
        for _ in range(_RECORDING):
            if warm_up < _ENOUGH / _REPEATS:
                warm_up += _seconds(args, partial(read, 0))[1]
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        while len(times) < _REPEATS and sum(times) < _ENOUGH:
            launched, done = _seconds(args, partial(read, 0))
            host_times.append(launched)
            times.append(done)
    seconds = statistics.median(times)
    rate = _operations(model, length) / seconds
    result = {
        "seconds": round(seconds, 5),
        "host_s": round(statistics.median(host_times), 5),
        "tokens_per_s": round(length / seconds, 1),
        "tflop_per_s": round(rate / 1e12, 3),
    }
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        weights = sum(weight.nbytes for weight in model.parameters())
        result["peak_gb"] = round(peak / 1e9, 2)
        result["beside_weights_gb"] = round((peak - weights) / 1e9, 2)
        rates = measured_rates(model.device, model.dtype)
        result["share_of_floor"] = round(rate / rates.operations, 3)
    return result


def _operations(model: PreTrainedModel, length: int) -> int:
    """Of one prefill; the head over the vocabulary sees one token only, and is left out."""
    layers = model.model.layers
    weights = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    width = layers[0].self_attn.q_proj.weight.shape[0]
    # Two products, of two operations each, over the half of the matrix that is not masked.
    attention = 2 * 2 * length * length // 2 * width * len(layers)
    return 2 * weights * length + attention


@contextmanager
def _our_reader(
    model: PreTrainedModel, compression: Compression, method: str, prompts: Sequence[list[int]]
) -> Iterator[Callable[[int], object]]:
    with ExitStack() as switches:
        if _TWO_PASSES in method:
            switches.enter_context(mock.patch.object(interface, "telling_attention", _none))
        if _OWN_LAYERS in method:
            switches.enter_context(mock.patch.object(Session, "_reads_fused", _no))
        if _LAUNCHED in method:
            switches.enter_context(mock.patch.object(reading, "_ROOM", 0))
        yield partial(Session(model, compression, prompts, 1, batch_size=1).admit, 0)


def _no(*given: object) -> bool:
    return False


def _none(*given: object) -> None:
    return None


@contextmanager
def _own_reader(
    model: PreTrainedModel, prompts: Sequence[list[int]]
) -> Iterator[Callable[[int], object]]:
    @torch.inference_mode()
    def read(index: int) -> None:
        tokens = torch.tensor([prompts[index]], device=model.device)
        cache = DynamicCache(config=model.config)
        model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)

    yield read


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_model_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["H2O", f"H2O{_OWN_LAYERS}", f"H2O{_TWO_PASSES}", "SnapKV"],
        help=f"prefill compressors, each perhaps with {_OWN_LAYERS}, {_TWO_PASSES} or both",
    )
    parser.add_argument("--prompt_lengths", nargs="+", type=int, default=[4096, 32768, 131072])
    parser.add_argument("--max_capacity_prompt", type=int, default=2048)
    parser.add_argument("--window_size", type=int, default=8)
    args = parser.parse_args()
    check_model_arguments(parser, args)
    if min(args.prompt_lengths) < 1:
        parser.error("--prompt_lengths must be at least 1")
    return args


if __name__ == "__main__":
    try:
        main()
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
