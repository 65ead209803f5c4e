"""Replays runs of the published SCOPE code and compares: ``python -m tests.golden DIR``.

A golden folder holds ``manifest.json`` (models and cases), weights, prompts, and for each case a
teacher-forced run: logits, cache lengths and the original positions that every head kept, after
the prefill and after each step. Cases named ``*_second`` carry counters over from an earlier
example; the harness never does, so they are skipped.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

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
from scope.methods.budget import Share
from scope.methods.compressor import Compressor
from scope.methods.prompt import Prompt

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
        model = random_model(spec["arch"], spec["config"], attn_implementation)
        # A file may hold rotary tables too, or tied weights once. What is missed shows in logits.
        model.load_state_dict(load_file(self.folder / spec["weights"]), strict=False)
        return model

    def case(self, name: str) -> "Case":
        spec = self.manifest["cases"][name]
        inputs = np.load(self.folder / self.manifest["models"][spec["model"]]["inputs"])
        return Case(
            compression=compression_of(spec["runtime"]),
            prompt=inputs[f"prompt_{spec['prompt']}"].tolist(),
            forced=inputs["forced"].tolist(),
            expected=dict(np.load(self.folder / spec["file"])),
        )


@dataclass(frozen=True)
class Case:
    """A golden run.

    Attributes:
        compression: its settings.
        prompt: its token ids.
        forced: those after it; some runs have fewer steps.
        expected: the arrays of its file, ``logits [T+1, vocabulary]`` among them.
    """

    compression: Compression
    prompt: list[int]
    forced: list[int]
    expected: Mapping[str, NDArray]


def compression_of(runtime: dict[str, Any]) -> Compression:
    """The settings of a golden run, under the upstream preset."""
    # The published code gives these two methods a delta of its own, whatever the runner asks for.
    ignores_delta = runtime["method"] in ("snapkv", "pyramidkv")
    return Compression.from_shared(
        method=runtime["method"],
        decoding_metric=runtime["decoding_metric"],
        max_capacity_prompt=runtime["max_capacity_prompt"],
        window_size=runtime["window_size"],
        decoding_window_size=runtime["decoding_window_size"],
        decoding_recent_size=runtime["decoding_recent_size"],
        kernel_size=runtime["kernel_size"],
        pooling=runtime["pooling"],
        delta=None if ignores_delta else runtime.get("delta"),
        fidelity=Fidelity.preset("upstream"),
    )


def random_model(
    architecture: str, config: dict[str, Any], attn_implementation: str
) -> PreTrainedModel:
    """An untrained ``llama`` or ``mistral``."""
    config_class, model_class = ARCHITECTURES[architecture]
    model = model_class._from_config(
        config_class(**config), attn_implementation=attn_implementation
    )
    return model.eval()


def replay(model: PreTrainedModel, case: Case, first: int | None = None) -> list[str]:
    """Feed a patched model what a golden run was fed, and compare, or only the first few logits.

    Where equal scores leave open what is kept of the prompt or in which order, the scores of what
    is kept are compared, and the run goes on from what the golden one kept.

    Returns:
        The first mismatch of each kind, as a line each.
    """
    expected = case.expected
    steps = len(expected["logits"]) - 1
    report = _Report()
    session = Session(model, case.compression, [case.prompt], steps)
    if _has_ties(expected):
        session.prefill()
        layers = zip(_kept_positions(session.cache), _prefill_scores(expected), strict=True)
        for layer_idx, (ours, theirs) in enumerate(layers):
            for head, (positions, (scores, kept)) in enumerate(zip(ours, theirs, strict=True)):
                held = np.sort(scores[positions[positions < len(scores)]])
                wanted = np.sort(scores[kept])
                same = len(held) == len(wanted) and np.allclose(held, wanted, rtol=1e-6, atol=0)
                report.check("prefill scores", 0, same, f"layer {layer_idx} head {head}")
        session = Session(model, case.compression, [case.prompt], steps)
        recipe = session.cache.recipe
        session.cache.recipe = replace(recipe, compressor=_GoldenChoice(expected))
    for step in range(steps + 1)[:first]:
        token = torch.tensor(case.forced[step - 1 : step])
        logits = session.prefill() if step == 0 else session.step(token)
        _compare(report, step, logits[0].numpy(), session.cache, expected)
    return list(report.mismatches.values())


@dataclass(frozen=True)
class _GoldenChoice(Compressor):
    """Keeps what the golden run kept, layer after layer."""

    name: ClassVar[str] = "golden"

    golden: Mapping[str, NDArray]

    def keep(self, prompt: Prompt, share: Share) -> Tensor:
        return torch.from_numpy(self.golden[f"prefill_kept_{prompt.layer}"].astype(np.int64))


@dataclass
class _Report:
    mismatches: dict[str, str] = field(default_factory=dict)

    def check(self, kind: str, step: int, same: bool, detail: object) -> None:
        if not same:
            self.mismatches.setdefault(kind, f"{kind} at step {step}: {detail}")


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


def _kept_positions(cache: SlotCache) -> list[list[NDArray[np.int32]]]:
    """Sorted positions that are held, ``[layer][head]``."""
    return [
        [np.sort(head[head >= 0]) for head in layer.positions[0].numpy()] for layer in cache.layers
    ]


def _prefill_scores(expected: Mapping[str, NDArray]) -> Iterator[list[tuple[NDArray, NDArray]]]:
    """Per layer and head, the scores of the prompt before its window and the tokens kept of it."""
    for layer_idx in count():
        if f"prefill_score_{layer_idx}" not in expected:
            return
        scores, kept = (expected[f"prefill_{name}_{layer_idx}"] for name in ("score", "kept"))
        yield [(s, k[k < len(s)]) for s, k in zip(scores, kept, strict=True)]


def _has_ties(expected: Mapping[str, NDArray]) -> bool:
    for heads in _prefill_scores(expected):
        for scores, kept in heads:
            ranked = np.sort(scores)[::-1][: len(kept) + 1]
            if len(np.unique(ranked)) < len(ranked):
                return True
    return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attn_implementation", nargs="+", default=["sdpa", "eager"])
    options = parser.parse_args(arguments)
    if not (options.folder / "manifest.json").is_file():
        parser.error(f"{options.folder} has no manifest.json; give a folder of golden runs")
    torch.set_num_threads(1)  # the models are tiny
    golden = Golden.open(options.folder)
    skipped = len(golden.manifest["cases"]) - len(golden.cases())
    total = matching = 0
    for implementation in options.attn_implementation:
        models = {name: golden.model(name, implementation) for name in golden.manifest["models"]}
        for name in tqdm(golden.cases(), desc=implementation, file=sys.stderr, disable=None):
            with patch(models[golden.manifest["cases"][name]["model"]]) as model:
                mismatches = replay(model, golden.case(name))
            for line in mismatches:
                print(f"[{implementation}] {name}: {line}")
            total += 1
            matching += not mismatches
    print(f"{skipped} cases skipped: they need counters carried over from an earlier example")
    print(f"{total} cases, {matching} match")
    return 0 if matching == total else 1


if __name__ == "__main__":
    sys.exit(main())
