"""Replays runs of the published SCOPE code and compares: ``python -m tests.golden DIR``.

A golden folder holds ``manifest.json`` (models and cases), weights, prompts, and for each case a
teacher-forced run: logits, cache lengths and the original positions that every head kept, after
the prefill and after each step. Cases named ``*_second`` carry counters over from an earlier
example; the harness never does, so they are skipped.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.modeling_utils import PreTrainedModel

from scope import Compression, Fidelity, SlotCache, patch
from scope.generation.session import Session
from scope.methods.prefill import PrefillCompressor
from scope.methods.prompt import PromptAttention

LOGIT_TOLERANCE = 2e-4
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


@dataclass(frozen=True)
class Golden:
    """A golden folder."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Golden":
        return cls(folder, json.loads((folder / "manifest.json").read_text()))

    def cases(self) -> list[str]:
        return [name for name in self.manifest["cases"] if not name.endswith("_second")]

    def model(self, name: str, attn_implementation: str) -> PreTrainedModel:
        spec = self.manifest["models"][name]
        config_class, model_class = ARCHITECTURES[spec["arch"]]
        settings = dict(spec["config"])
        settings["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": settings.pop("rope_theta"),
        }
        model = model_class._from_config(
            config_class(**settings), attn_implementation=attn_implementation
        )
        model.load_state_dict(load_file(self.folder / spec["weights"]))
        return model.eval()

    def replay(self, case_name: str, model: PreTrainedModel) -> list[str]:
        """The first mismatch of each kind, as a line each."""
        case = self.manifest["cases"][case_name]
        expected = dict(np.load(self.folder / case["file"]))
        inputs = np.load(self.folder / self.manifest["models"][case["model"]]["inputs"])
        prompt = inputs[f"prompt_{case['prompt']}"].tolist()
        forced = inputs["forced"].tolist()
        report = _Report(case_name)
        compression = _compression(case["runtime"])
        session = Session(model, compression, [prompt], len(forced))
        if case["prefill_heads_tied"]:
            session.prefill()
            for layer_idx, heads in enumerate(_kept_positions(session.cache)):
                same = _same_scores(heads, layer_idx, expected)
                report.check("prefill scores", 0, same, f"layer {layer_idx}")
            session = Session(model, compression, [prompt], len(forced))
            session.cache.compressor = _GoldenChoice(compression.max_capacity_prompt, expected)
        for step in range(len(forced) + 1):
            token = torch.tensor(forced[step - 1 : step])
            logits = session.prefill() if step == 0 else session.step(token)
            _compare(report, step, logits[0].numpy(), session.cache, expected)
        return list(report.mismatches.values())


@dataclass(frozen=True)
class _GoldenChoice(PrefillCompressor):
    """Keeps what the golden run kept, layer after layer."""

    golden: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", count())

    def keep(self, attention: PromptAttention, capacity: int) -> Tensor:
        return torch.from_numpy(self.golden[f"prefill_kept_{next(self.layer)}"].astype(np.int64))


@dataclass
class _Report:
    case: str
    mismatches: dict[str, str] = field(default_factory=dict)

    def check(self, kind: str, step: int, same: bool, detail: object) -> None:
        if not same:
            self.mismatches.setdefault(kind, f"{self.case}: {kind} at step {step}: {detail}")


def _compare(report: _Report, step: int, logits: Any, cache: SlotCache, expected: Any) -> None:
    error = np.abs(logits - expected["logits"][step]).max()
    report.check("logits", step, error <= LOGIT_TOLERANCE, f"off by {error:.1e}")
    lengths = cache.schedule.now.lengths[:, 0]
    golden = expected["cache_len"][step]
    report.check("cache length", step, np.array_equal(lengths, golden), (lengths, golden))
    if step == 0:
        attended = np.full_like(lengths, cache.schedule.prompt_lengths[0])
    else:
        attended = lengths + cache.schedule.losses[:, 0]
    golden = expected["attended_len"][step]
    report.check("attended length", step, np.array_equal(attended, golden), (attended, golden))
    for layer_idx, heads in enumerate(_kept_positions(cache)):
        golden = np.unpackbits(expected["kept_mask"][step, layer_idx], axis=-1)
        for head, positions in enumerate(heads):
            same = np.array_equal(positions, np.flatnonzero(golden[head]))
            report.check("kept positions", step, same, f"layer {layer_idx} head {head}")


def _compression(runtime: dict[str, Any]) -> Compression:
    # The published code gives these two methods a delta of its own, whatever the runner asks for.
    ignores_delta = runtime["method"] in ("snapkv", "pyramidkv")
    return Compression(
        method=runtime["method"],
        decoding_metric=runtime["decoding_metric"],
        max_capacity_prompt=runtime["max_capacity_prompt"],
        window_size=runtime["window_size"],
        decoding_window_size=runtime["decoding_window_size"],
        decoding_recent_size=runtime["decoding_recent_size"],
        kernel_size=runtime["kernel_size"],
        pooling=runtime["pooling"],
        delta=None if ignores_delta else runtime["delta"],
        fidelity=Fidelity.preset("upstream"),
    )


def _kept_positions(cache: SlotCache) -> list[list[NDArray[np.int32]]]:
    """Sorted positions that are held, ``[layer][head]``."""
    return [
        [np.sort(head[head >= 0]) for head in layer.positions[0].numpy()] for layer in cache.layers
    ]


def _same_scores(heads: list[NDArray[np.int32]], layer_idx: int, expected: Any) -> bool:
    """Whether the kept tokens have the golden ones' scores, though ties may fall otherwise."""
    scores = expected[f"prefill_score_{layer_idx}"]
    golden = expected[f"prefill_kept_{layer_idx}"]
    for head, kept in enumerate(heads):
        ours, theirs = (
            np.sort(scores[head][positions[positions < scores.shape[1]]])
            for positions in (kept, golden[head])
        )
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attn_implementation", nargs="+", default=["sdpa", "eager"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are tiny
    golden = Golden.open(options.folder)
    skipped = len(golden.manifest["cases"]) - len(golden.cases())
    total = matching = 0
    for implementation in options.attn_implementation:
        models = {name: golden.model(name, implementation) for name in golden.manifest["models"]}
        for name in tqdm(golden.cases(), desc=implementation, file=sys.stderr, disable=None):
            with patch(models[golden.manifest["cases"][name]["model"]]) as model:
                mismatches = golden.replay(name, model)
            for line in mismatches:
                print(f"[{implementation}] {line}")
            total += 1
            matching += not mismatches
    print(f"{skipped} cases skipped: they need counters carried over from an earlier example")
    print(f"{total} cases, {matching} match")
    return 0 if matching == total else 1


if __name__ == "__main__":
    sys.exit(main())
