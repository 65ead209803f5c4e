r"""kvpress in the decode benchmark: it needs an older transformers, so an environment of its own.

    python -m venv kvpress-env        # and into it the torch of the main environment, then
    kvpress-env/bin/pip install -r scripts/kvpress_requirements.txt
    python scripts/bench_decode.py --shape llama-3.1-8b --methods kvpress-knorm kvpress-snapkv \
        --kvpress_python kvpress-env/bin/python

Without a network, ``pip install --no-index --no-deps --target FOLDER`` the wheels of kvpress,
transformers, tokenizers, cachetools, datasets, dill, fire, multiprocess and termcolor; then
``--kvpress_python "env PYTHONPATH=FOLDER python"`` finds the rest in the main environment, where
huggingface_hub must be older than 2.0.

Prints one JSON object per row. A DecodingPress lets the cache grow and every so many steps cuts it
back to its target, here C + W tokens per layer and head: what SCOPE's methods hold at every step.
It begins with that many, as if a press for prompts had been used before.
"""

import argparse
import json
import time
from functools import partial
from importlib.metadata import version

import torch
from bench_measure import (
    Decoding,
    Timing,
    add_arguments,
    check_arguments,
    copy_bandwidth,
    fill,
    limit_memory,
    load_model,
    rows,
)
from kvpress import DecodingPress, KnormPress, SnapKVPress
from transformers import DynamicCache, PreTrainedModel

# SnapKV scores by the queries of 64 steps, so it cannot cut more often than that. Twice as rarely,
# both spend little time on cutting, and the cache grows by no more than 5 % between the cuts.
_INTERVAL = 128
# What scores the tokens, and how many steps' hidden states it needs for that.
_PRESSES = {"kvpress-knorm": (KnormPress, 0), "kvpress-snapkv": (SnapKVPress, _INTERVAL)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=_PRESSES, default=list(_PRESSES))
    args = parser.parse_args()
    check_arguments(parser, args)
    limit_memory(args)
    bandwidth = copy_bandwidth(args.device)
    model = load_model(args)
    versions = {name: version(name) for name in ("kvpress", "transformers", "torch")}
    # A block is one interval, so that it has its share of cutting.
    timing = Timing(warm_up=_INTERVAL, blocks=1, steps=_INTERVAL)
    for method in args.methods:
        start = partial(_decoding, args, model, method)
        for row in rows(args, model, method, start, timing, bandwidth, _INTERVAL + 1):
            print(json.dumps(row | {"versions": versions}), flush=True)


@torch.no_grad()
def _decoding(
    args: argparse.Namespace, model: PreTrainedModel, method: str, batch: int
) -> Decoding:
    press, hidden_states = _PRESSES[method]
    target = args.max_capacity_prompt + args.decoding_window_size
    decoding_press = DecodingPress(
        press(),
        compression_interval=_INTERVAL,
        target_size=target,
        hidden_states_buffer_size=hidden_states,
    )
    cache = DynamicCache(config=model.config)
    fill(cache, model, batch, target)
    choice = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
    position = torch.full((1, 1), args.prompt_length, device=model.device)

    def held() -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    def usage() -> tuple[int, int]:
        return held(), most

    most = held()
    with decoding_press(model):
        yield usage
        while True:
            started = time.perf_counter()
            output = model(input_ids=choice, past_key_values=cache, position_ids=position)
            choice = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            position = position + 1
            most = max(most, held())
            yield time.perf_counter() - started


if __name__ == "__main__":
    main()
