"""What the records of a run say together."""

from typing import Any

from scope.harness.jobs import Job


def totals(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals of what the caches did, over all examples and averaged over layers."""
    caches = [record["cache"] for record in records]

    def mean(key: str) -> float:
        values = [value for cache in caches for value in cache[key]]
        return round(sum(values) / len(values), 2)

    return {
        "mean_prompt_tokens": sum(cache["prompt_tokens"] for cache in caches) / len(caches),
        "mean_prompt_kept": mean("prompt_kept"),
        "mean_decode_evicted": mean("decode_evicted"),
        "mean_selections": mean("selections"),
        "peak_physical_length": max(max(cache["peak"]) for cache in caches),
    }


def idle_compression(job: Job, records: list[dict[str, Any]]) -> list[str]:
    """Compression that was asked for and never acted."""
    caches = [record["cache"] for record in records]
    warnings, options = [], job.compression.options
    if "max_capacity_prompt" in options:
        whole = sum(min(c["prompt_kept"]) >= c["prompt_tokens"] for c in caches)
        if whole:
            warnings.append(
                f"{job.compression.method} kept all of the prompt in {whole} of {len(caches)} "
                f"examples: no longer than max_capacity_prompts "
                f"{options['max_capacity_prompt']}"
            )
    if "decoding_window_size" in options:
        idle = sum(max(c["decode_evicted"]) == 0 for c in caches)
        if idle:
            warnings.append(
                f"{job.compression.decoding_metric} evicted nothing in {idle} of {len(caches)} "
                f"examples: output too short for decoding_window_size "
                f"{options['decoding_window_size']}"
            )
    return warnings
