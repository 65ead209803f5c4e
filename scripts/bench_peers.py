"""Transformers' own caches, which hold every token, as peers in the decode benchmark.

They are filled, not prompted: at step t a full cache holds prompt + t tokens, and only how many
decides how long a step takes. So their peak memory lacks what reading a prompt takes.
"""

import time

import torch
from bench_measure import Decoding, fill
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

PEERS = ("transformers-dynamic", "transformers-static-compiled")


@torch.no_grad()
def full_cache(
    model: PreTrainedModel,
    method: str,
    batch: int,
    tokens: int,
    steps: int,
    *,
    compiled: bool = True,
) -> Decoding:
    """Decode with a full cache that holds ``tokens`` tokens a row at first.

    Args:
        model: what decodes.
        method: one of `PEERS`.
        batch: rows.
        tokens: held when decoding begins.
        steps: that will follow. A static cache is no longer than they need, its best case: every
            step attends over all of it.
        compiled: decode with the static cache as ``generate`` does, by the model's compiled call.
    """
    static = method == "transformers-static-compiled"
    cache: Cache = (
        StaticCache(config=model.config, max_cache_len=tokens + steps)
        if static
        else DynamicCache(config=model.config)
    )
    compiled &= static
    forward = model.get_compiled_call(None) if compiled else model
    fill(cache, model, batch, tokens)
    layers, done = cache.layers, 0
    choice = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)

    def usage() -> tuple[int, int]:
        allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return allocated * (tokens + done) // layers[0].keys.shape[2], allocated

    try:
        yield usage
        while True:
            started = time.perf_counter()
            logits = forward(input_ids=choice, past_key_values=cache).logits
            choice = logits[:, -1].argmax(dim=-1, keepdim=True)
            done += 1
            yield time.perf_counter() - started
    finally:
        if compiled:
            torch.compiler.reset()  # the next batch size compiles for its own shape
