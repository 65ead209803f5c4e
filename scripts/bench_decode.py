"""How fast decoding is, and how far from the hardware's limit.

    python scripts/bench_decode.py --shape llama-3.1-8b --batches 1 8 32 96

Prints a table, and as the last line the same as JSON. The floor of a step is the time that copying
as many bytes takes as it must read: every weight but the embedding, and every cached key and value,
once each. Weights of a named shape are random; the tokens mean nothing, the speed is the same.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from scope import Compression, ScopeError, patch
from scope.generation.session import Session

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
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
PEERS = ("transformers-dynamic", "transformers-static-compiled")
_BLOCKS = 5


def main() -> None:
    args = _arguments()
    model = _model(args)
    bandwidth = _copy_bandwidth(args.device)
    print(
        f"{torch.cuda.get_device_name() if args.device == 'cuda' else platform.machine()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; copies at "
        f"{bandwidth / 1e12:.2f} TB/s; {args.shape or args.model_path} in {model.dtype}, prompt "
        f"{args.prompt_length}, C {args.max_capacity_prompt}, W {args.decoding_window_size}, "
        f"R {args.decoding_recent_size}, T {args.max_new_tokens}, from step {args.start}"
    )
    print(_line(*_COLUMNS), flush=True)
    results = []
    for method in args.methods:
        for batch in args.batches:
            result = {"method": method, "batch": batch}
            try:
                result |= _measure(args, model, method, batch, bandwidth)
            except torch.OutOfMemoryError:
                result["error"] = "out of memory"
            results.append(result)
            print(_line(*(result.get(name, "-") for name in _COLUMNS)), flush=True)
            torch.cuda.empty_cache()
    print(json.dumps({**vars(args), "copy_bytes_per_second": bandwidth, "results": results}))


_COLUMNS = {
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


def _line(*cells: object) -> str:
    return "  ".join(
        f"{cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)
    )


def _measure(
    args: argparse.Namespace, model: PreTrainedModel, method: str, batch: int, bandwidth: float
) -> dict[str, float]:
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    decoding = (
        _peer(args, model, method, batch) if method in PEERS else _ours(args, model, method, batch)
    )
    usage = next(decoding)
    capture = sum(next(decoding) for _ in range(3))
    for _ in range(3, args.start):
        next(decoding)
    blocks = []
    for _ in range(_BLOCKS):
        _synchronize(args.device)
        started = time.perf_counter()
        for _ in range(args.steps // _BLOCKS):
            next(decoding)
        _synchronize(args.device)
        blocks.append((time.perf_counter() - started) / (args.steps // _BLOCKS))
    seconds = sorted(blocks)[_BLOCKS // 2]
    held, allocated = usage()
    decoding.close()
    embedding = model.get_input_embeddings().weight
    weights = sum(weight.nbytes for weight in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= embedding.nbytes
    floor = (weights + held) / bandwidth
    peak = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else 0.0
    return {
        "ms_per_step": round(seconds * 1e3, 2),
        "tokens_per_s": round(batch / seconds, 1),
        "floor_ms": round(floor * 1e3, 2),
        "share_of_floor": round(floor / seconds, 3),
        "peak_gb": round(peak, 2),
        "kv_mb_per_row": round(allocated / batch / 1e6, 1),
        "capture_s": round(capture, 2),
    }


@torch.inference_mode()
def _ours(
    args: argparse.Namespace, model: PreTrainedModel, method: str, batch: int
) -> Iterator[Any]:
    """Decode for ever.

    Yields:
        First a function that tells the bytes of keys and values, held and allocated; then, for each
        step, the seconds that the host spent on it.
    """
    compressor, strategy = method.split("+")
    compression = Compression(
        compressor,
        strategy,
        max_capacity_prompt=args.max_capacity_prompt,
        decoding_window_size=args.decoding_window_size,
        decoding_recent_size=args.decoding_recent_size,
    )
    prompts = _prompts(args, model, batch).tolist()
    with patch(model):
        session = Session(model, compression, prompts, args.max_new_tokens)
        choice = session.prefill().argmax(dim=-1)
        _synchronize(args.device)
        cache, lengths = session.cache, session.cache.schedule.now.lengths
        token_bytes = cache.kv_bytes // sum(layer.keys.shape[2] for layer in cache.layers) // batch
        yield lambda: (int(lengths.sum()) * token_bytes, cache.kv_bytes)
        while True:
            started = time.perf_counter()
            choice = session.step(choice).argmax(dim=-1)
            yield time.perf_counter() - started


@torch.inference_mode()
def _peer(
    args: argparse.Namespace, model: PreTrainedModel, method: str, batch: int
) -> Iterator[Any]:
    """The same for transformers' own caches, which hold every token."""
    steps = args.start + args.steps + 1
    if method == "transformers-dynamic":
        cache, forward = DynamicCache(config=model.config), model.forward
    else:
        cache = StaticCache(config=model.config, max_cache_len=args.prompt_length + steps)
        torch.compiler.reset()
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    tokens = _prompts(args, model, batch).to(model.device)
    for start in range(0, args.prompt_length, 256):  # a whole batch at once does not fit
        part = tokens[:, start : start + 256]
        logits = model(input_ids=part, past_key_values=cache, logits_to_keep=1).logits
    choice = logits[:, -1].argmax(dim=-1, keepdim=True)
    layers, done = cache.layers, 0

    def usage() -> tuple[int, int]:
        states = layers[0].keys
        token = 2 * len(layers) * batch * states.shape[1] * states.shape[3] * states.itemsize
        allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return (args.prompt_length + done) * token, allocated

    yield usage
    while True:
        started = time.perf_counter()
        done += 1
        logits = forward(input_ids=choice, past_key_values=cache).logits
        choice = logits[:, -1].argmax(dim=-1, keepdim=True)
        yield time.perf_counter() - started


def _prompts(args: argparse.Namespace, model: PreTrainedModel, batch: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    shape = (batch, args.prompt_length)
    return torch.randint(model.config.vocab_size, shape, generator=random)


def _copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by the fastest of some large copies."""
    source = torch.empty(2**31 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(20):
        _synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _model(args: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    if args.model_path is not None:
        return AutoModelForCausalLM.from_pretrained(args.model_path, dtype=dtype).to(args.device)
    config = LlamaConfig(**SHAPES[args.shape], bos_token_id=None, eos_token_id=None)
    with torch.device(args.device):
        return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--model_path", help="a model as for from_pretrained, instead of a shape")
    methods = f"COMPRESSOR+STRATEGY, or one of {', '.join(PEERS)}"
    parser.add_argument("--methods", nargs="+", default=["H2O+slide"], help=methods)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 96])
    parser.add_argument("--prompt_length", type=int, default=3000)
    parser.add_argument("--max_capacity_prompt", type=int, default=2048)
    parser.add_argument("--decoding_window_size", type=int, default=512)
    parser.add_argument("--decoding_recent_size", type=int, default=256)
    parser.add_argument("--max_new_tokens", type=int, default=8192)
    parser.add_argument("--start", type=int, default=600, help="steps before timing begins")
    parser.add_argument("--steps", type=int, default=100, help="steps timed, in blocks")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if (args.shape is None) == (args.model_path is None):
        parser.error("give either --shape or --model_path")
    for method in args.methods:
        if method not in PEERS and method.count("+") != 1:
            parser.error(f"--methods {method}: expected {methods}")
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
