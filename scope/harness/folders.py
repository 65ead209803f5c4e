"""Where a run's results go by default: another place for every setting that differs."""

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from scope.compression import Compression
from scope.harness.config import RunConfig
from scope.methods.fidelity import Fidelity

# Told by the path already, or without influence on what is written.
_ELSEWHERE = {
    "model_path",
    "method",
    "decoding_metric",
    "budget",
    "decoding_score",
    "fidelity",
    "dataset",
    "save_dir",
    "results_dir",
    "compare_with",
    "batch_size",
    "device",
    "use_cache",
    "max_num_examples",
    "num_samples",
    "seed",
}

# File systems take names of up to 255 bytes.
_LONGEST = 200


def default_save_dir(run: RunConfig, compression: Compression) -> Path:
    """The original's name for a configuration, and what else differs from its default."""
    options, methods = compression.options, compression.methods
    name = f"{compression.method}+{compression.decoding_metric}"
    for option, word in {
        "decoding_window_size": "decoding_window",
        "decoding_recent_size": "recent_window",
    }.items():
        if option in options:
            name += f"_{word}_{options[option]}"
    differing: dict[str, Any] = {}
    if compression.budget != methods.compressor.budget.name:
        differing["budget"] = compression.budget
    own_score = methods.strategy.score
    if own_score is not None and compression.decoding_score != own_score.name:
        differing["score"] = compression.decoding_score
    differing |= compression.changed_options
    preset = Fidelity.preset(run.fidelity)
    if preset != Fidelity():
        differing["fidelity"] = run.fidelity.lower()
    differing |= {
        switch: value
        for switch, value in vars(compression.fidelity).items()
        if value != getattr(preset, switch)
    }
    differing |= {
        field.name: getattr(run, field.name)
        for field in fields(run)
        if field.metadata
        and field.name not in _ELSEWHERE
        and getattr(run, field.name) != field.default
    }
    if run.temperature > 0 and run.seed != RunConfig.seed:
        differing["seed"] = run.seed
    told = "_".join([name, *(f"{option}_{_short(value)}" for option, value in differing.items())])
    if len(told) > _LONGEST:
        told = f"{told[:_LONGEST]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return run.results_dir / told


def _short(value: Any) -> str:
    """A value as a part of a folder's name; paths of the same name stay apart."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    if isinstance(value, Path):
        digest = hashlib.sha256(str(value).encode()).hexdigest()[:6]
        return f"{re.sub(r'[^A-Za-z0-9.-]', '-', value.stem)}-{digest}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("/", "-")
