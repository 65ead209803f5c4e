"""What the decode benchmarks share: models, a filled cache, a clock, the search for a batch.

Needs torch and transformers alone, so that it also runs in a peer's environment. A *decoding* is a
generator that prepares a batch and decodes for ever: it yields first a function that tells the
bytes of keys and values, held and allocated, and then, for each step, the host's seconds.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

_LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": _LLAMA_ROPE,
    },
    "llama-3.1-70b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": _LLAMA_ROPE,
    },
    "qwen2.5-1.5b": {  # but without its biases
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
_CPU_SHAPE = "tiny"  # the only one that is no real model's
STEPS_TO_FIT = 4  # enough to see that a batch fits, recording a graph included
_CAPTURE_STEPS = 3
_TOLERANCE = 0.03
_COPIES = 10

Decoding = Iterator[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every decode benchmark has."""
    add_model_arguments(parser)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 96])
    parser.add_argument("--prompt_length", type=int, default=3000)
    parser.add_argument("--max_capacity_prompt", type=int, default=2048)
    parser.add_argument("--decoding_window_size", type=int, default=512)
    parser.add_argument(
        "--largest_batch", action="store_true", help="find the largest batch instead, on a GPU"
    )
    parser.add_argument("--memory_gb", type=float, help="use no more of the GPU, in 1e9 bytes")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with one line where these options cannot be meant."""
    check_model_arguments(parser, args)
    if min(args.batches) < 1:
        parser.error(f"--batches {min(args.batches)}: expected at least 1")
    if args.device != "cuda" and (args.largest_batch or args.memory_gb is not None):
        parser.error("--largest_batch and --memory_gb are about a GPU's memory; use --device cuda")
    if args.memory_gb is not None:
        total_gb = _total_memory() / 1e9
        if not 0 < args.memory_gb <= total_gb:
            parser.error(f"--memory_gb {args.memory_gb}: expected at most {total_gb:.1f}")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark that say which model, and where."""
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--model_path", help="a model as for from_pretrained, instead of a shape")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=["cuda", "cpu"])


def check_model_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with one line where those options cannot be meant."""
    if (args.shape is None) == (args.model_path is None):
        parser.error("give either --shape or --model_path")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    if args.device == "cpu" and args.shape not in (None, _CPU_SHAPE):
        parser.error(
            f"--shape {args.shape} takes a GPU, and --device is cpu; expected --shape {_CPU_SHAPE} "
            "or a --model_path"
        )


def limit_memory(args: argparse.Namespace) -> None:
    """Let torch allocate no more than ``--memory_gb``, as on a smaller GPU."""
    if args.memory_gb is not None:
        torch.cuda.set_per_process_memory_fraction(_memory(args) / _total_memory())


def load_model(args: argparse.Namespace) -> PreTrainedModel:
    """The model, or the end of the program with one line where there is none."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    if args.model_path is not None:
        try:
            model = AutoModelForCausalLM.from_pretrained(args.model_path, dtype=dtype)
        except (OSError, ValueError) as error:
            print(f"error: --model_path {args.model_path}: {_line(error)}", file=sys.stderr)
            sys.exit(2)
        return model.to(args.device)
    config = LlamaConfig(**SHAPES[args.shape], bos_token_id=None, eos_token_id=None)
    if getattr(args, "tensor_parallel", False):
        return _part_of_model(config, dtype, args.device)
    with torch.device(args.device):
        return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def _part_of_model(config: LlamaConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """This process's part, of which no more is ever allocated."""
    from scope.attention.splitting import split_over_ranks

    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    split_over_ranks(model)
    model.to_empty(device=device)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02) if weight.dim() > 1 else weight.fill_(1)
    with torch.device(device):  # what it computes of the configuration is not on the meta device
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def fill(cache: Cache, model: PreTrainedModel, batch: int, tokens: int) -> None:
    """As if ``tokens`` tokens a row had been read: neither speed nor memory depend on which."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (batch, config.num_key_value_heads, tokens, head_dim)
    for index in range(config.num_hidden_layers):
        states = torch.randn(shape, dtype=model.dtype, device=model.device)
        cache.update(states, states, index)


@dataclass(frozen=True)
class Timing:
    """Which steps are timed: after ``warm_up``, ``blocks`` blocks of ``steps``; the median counts.

    Attributes:
        warm_up: at least 3: those that compile and record.
        blocks: an odd number.
        steps: per block.
    """

    warm_up: int
    blocks: int
    steps: int

    @property
    def all_steps(self) -> int:
        return self.warm_up + self.blocks * self.steps


def rows(
    args: argparse.Namespace,
    model: PreTrainedModel,
    method: str,
    start: Callable[[int], Decoding],
    timing: Timing,
    bandwidth: float,
    steps_to_fit: int = STEPS_TO_FIT,
) -> Iterator[dict[str, Any]]:
    """The method's rows of the table: one per batch size, or one that tells the largest."""
    if args.largest_batch:
        yield {"method": method} | largest_batch(args, model, start, steps_to_fit)
        return
    for batch in args.batches:
        row = {"method": method, "batch": batch}
        try:
            row |= speed(model, start(batch), batch, timing, bandwidth)
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
        _free_memory()
        yield row


def speed(
    model: PreTrainedModel, decoding: Decoding, batch: int, timing: Timing, bandwidth: float
) -> dict[str, float]:
    """Time the steps of a decoding that has not begun; ``bandwidth`` is a copy's, in bytes/s."""
    device = model.device.type
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    usage = next(decoding)
    capture = sum(next(decoding) for _ in range(_CAPTURE_STEPS))
    for _ in range(_CAPTURE_STEPS, timing.warm_up):
        next(decoding)
    means = []
    for _ in range(timing.blocks):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(timing.steps):
            next(decoding)
        synchronize(device)
        means.append((time.perf_counter() - started) / timing.steps)
    seconds = sorted(means)[timing.blocks // 2]
    held, allocated = usage()
    decoding.close()
    weights = _weight_bytes(model)
    if not model.config.tie_word_embeddings:  # one row of it is read, not all
        weights -= model.get_input_embeddings().weight.nbytes
    floor = (weights + held) / bandwidth
    return {
        "ms_per_step": round(seconds * 1e3, 2),
        "tokens_per_s": round(batch / seconds, 1),
        "floor_ms": round(floor * 1e3, 2),
        "share_of_floor": round(floor / seconds, 3),
        "peak_gb": _peak_gb(device),
        "kv_mb_per_row": round(allocated / batch / 1e6, 1),
        "capture_s": round(capture, 2),
    }


def largest_batch(
    args: argparse.Namespace, model: PreTrainedModel, start: Callable[[int], Decoding], steps: int
) -> dict[str, float]:
    """The largest batch that is prepared and decodes ``steps`` steps in the memory allowed.

    Found to within 3 %: the next larger batch tried ran out of memory.
    """
    started = time.perf_counter()
    trial = start(1)
    try:
        _, row_bytes = next(trial)()
    except torch.OutOfMemoryError:
        return {"largest_batch": 0, "search_s": round(time.perf_counter() - started, 1)}
    finally:
        trial.close()
    found: dict[int, dict[str, float]] = {}

    def fits(batch: int) -> bool:
        decoding = start(batch)
        try:
            found[batch] = _memory_needed(decoding, batch, steps)
            return True
        except (torch.OutOfMemoryError, UserWarning):  # the warning: no room to record a graph
            return False
        finally:
            decoding.close()
            _free_memory()

    too_many = max(0, int((_memory(args) - _weight_bytes(model)) / row_bytes)) + 1
    largest = search(fits, too_many)
    seconds = round(time.perf_counter() - started, 1)
    return {"largest_batch": largest, "search_s": seconds} | found.get(largest, {})


def _memory_needed(decoding: Decoding, batch: int, steps: int) -> dict[str, float]:
    torch.cuda.reset_peak_memory_stats()
    usage = next(decoding)
    for _ in range(steps):
        next(decoding)
    torch.cuda.synchronize()
    _, allocated = usage()
    return {"kv_mb_per_row": round(allocated / batch / 1e6, 1), "peak_gb": _peak_gb("cuda")}


def search(fits: Callable[[int], bool], too_many: int) -> int:
    """The largest number that fits, to within 3 % of it, given one that cannot."""
    largest, middle = 0, too_many * 7 // 8  # most memory goes to keys and values, so close to it
    while too_many - largest > max(1, _TOLERANCE * largest):
        if fits(middle):
            largest = middle
        else:
            too_many = middle
        middle = (largest + too_many) // 2
    return largest


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by large copies, the best of some runs.

    Several follow one another between two waits for the device: one alone would be timed with its
    launch and the wait, and floors would come out too long.
    """
    source = torch.empty(2**31 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(_COPIES):
            target.copy_(source)
        synchronize(device)
        best = min(best, (time.perf_counter() - started) / _COPIES)
    moved = 2 * source.nbytes
    del source, target
    _free_memory()
    return moved / best


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def _peak_gb(device: str) -> float:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device == "cuda" else 0.0


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(args: argparse.Namespace) -> float:
    return _total_memory() if args.memory_gb is None else args.memory_gb * 1e9


def _total_memory() -> int:
    return torch.cuda.get_device_properties().total_memory


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()
