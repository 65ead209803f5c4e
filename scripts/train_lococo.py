"""Trains LoCoCo's heads for one model, which stays as it is.

    OMP_NUM_THREADS=1 python -m scripts.train_lococo --out lococo-recall
    python -m scripts.train_lococo --model_path qwen2.5-coder-1.5b.gguf --text prompts.jsonl \\
        --capacity 512 --segment 512 --length 4096 --device cuda --dtype bfloat16 --out lococo-qwen

Every text is read segment by segment. After each, what is held of it is cut to C entries a head, as
`LoCoCo` does; the loss is that of the next tokens in the segments after the first, each given the
memory of those before it, whose entries count as constants but for the last fold.

Writes ``heads.safetensors``, ``loss_curve.csv`` and ``evaluation.csv`` into the folder: the loss of
texts that were not trained on, with the full cache, with what LoCoCo drops simply dropped, with
untrained heads, and with the trained ones. A run that was killed goes on from its last checkpoint
when the same command is given again. ``--steps 0`` writes untrained heads.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from baselines.lococo import split
from baselines.lococo_heads import Heads
from scope.errors import ScopeError
from scope.harness.models import load_model, load_tokenizer
from scope.kernels.folding import folded
from scope.methods.rope import head_dim_of
from scope.recall.task import RecallTask
from scripts.checkpoint import load_checkpoint, save_checkpoint

RECALL_MODEL = Path(__file__).parents[1] / "scope" / "recall" / "model"
INTERVAL = 25  # steps between checkpoints, and rows of the loss curve
HELD_OUT = 1_000_000  # texts of the evaluation are those of this step and the next ones
EVALUATION_BATCHES = 8


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Recipe:
    """What is learned and how. Raises ScopeError for values that cannot work."""

    capacity: int = _option(98, "C, entries a head holds after each segment")
    slots: int = _option(49, "M, how many of these are mixtures")
    window: int = _option(8, "w, last tokens that stay as they are")
    segment: int = _option(352, "tokens of a segment; of recall, after the prompt, which is one")
    length: int = _option(2048, "tokens of a text; recall has its own")
    kernel: int = _option(21, "width of the convolution, odd")
    steps: int = _option(1000, "optimizer steps")
    batch: int = _option(8, "texts of a step, read together")
    rate: float = _option(5e-2, "learning rate (AdamW), falling to 0 in a straight line")
    seed: int = _option(0, "of the initial weights and the texts")

    def __post_init__(self) -> None:
        for name in ("capacity", "slots", "window", "segment", "length", "kernel", "batch"):
            if getattr(self, name) < 1:
                raise ScopeError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.slots + self.window > self.capacity:
            raise ScopeError(
                f"slots {self.slots} and window {self.window} do not fit in capacity "
                f"{self.capacity}; make it larger"
            )
        if self.kernel % 2 == 0:
            raise ScopeError(f"kernel must be odd, not {self.kernel}")
        if self.length <= self.segment:
            raise ScopeError(f"length {self.length} must be larger than segment {self.segment}")
        if self.rate <= 0:
            raise ScopeError(f"rate must be positive, not {self.rate}")
        if min(self.seed, self.steps) < 0:
            raise ScopeError("seed and steps must not be negative")


# --- texts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Texts of one length, cut into segments; those of a step depend on seed and step alone.

    Attributes:
        recipe: sizes and seed.
        tokens: of one long text to cut from; None for recall tasks.
    """

    recipe: Recipe
    tokens: np.ndarray | None

    def batch(self, step: int) -> Tensor:
        """``[B, L]`` token ids."""
        rng = np.random.default_rng(np.random.SeedSequence(self.recipe.seed, spawn_key=(step,)))
        if self.tokens is None:
            prompts, answers = RecallTask().sample(rng, self.recipe.batch)
            generated = answers.reshape(len(answers), -1)[:, 1:]  # the first K ends the prompt
            return torch.from_numpy(np.concatenate([prompts, generated], axis=1))
        # What is held out is the last twentieth.
        border = len(self.tokens) - max(len(self.tokens) // 20, self.recipe.length + 1)
        low, high = (border, len(self.tokens)) if step >= HELD_OUT else (0, border)
        starts = rng.integers(low, high - self.recipe.length, self.recipe.batch, endpoint=True)
        return torch.from_numpy(
            np.stack([self.tokens[start : start + self.recipe.length] for start in starts])
        )

    def cuts(self, length: int) -> list[slice]:
        """The segments of a text."""
        first = RecallTask().prompt_length if self.tokens is None else self.recipe.segment
        starts = [0, *range(first, length, self.recipe.segment)]
        return [slice(*pair) for pair in zip(starts, [*starts[1:], length], strict=True)]


def read_texts(recipe: Recipe, path: Path | None, model_path: str) -> Texts:
    """Recall tasks, or a text file; of a .jsonl file each line's prompt and answers.

    Raises:
        ScopeError: for a text that is too short.
    """
    if path is None:
        return Texts(recipe, None)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        text = "\n\n".join("\n".join([row["prompt"], *row.get("answers", [])]) for row in rows)
    tokens = np.array(load_tokenizer(model_path)(text)["input_ids"])
    needed = 3 * recipe.length
    if len(tokens) < needed:
        raise ScopeError(f"--text {path} has {len(tokens)} tokens; {needed} are needed at least")
    return Texts(recipe, tokens)


# --- one text -------------------------------------------------------------------------------------


def losses(
    model: PreTrainedModel, heads: Heads | None, tokens: Tensor, cuts: list[slice], recipe: Recipe
) -> Iterator[Tensor]:
    """Mean loss of each segment after the first, given what is held of those before it.

    Args:
        model: with eager attention, whose weights rank what is held.
        heads: None holds everything.
        tokens: ``[B, L]``.
        cuts: segments of L.
        recipe: how much is held.
    """
    memory: list[tuple[Tensor, Tensor]] = []
    received: list[Tensor] = []
    for number, cut in enumerate(cuts):
        cache = DynamicCache()
        for layer, states in enumerate(memory):
            cache.update(*states, layer)
        positions = torch.arange(cut.start, cut.stop, device=tokens.device)
        output = model(
            input_ids=tokens[:, cut],
            position_ids=positions.expand(len(tokens), -1),
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        if number:
            targets = tokens[:, cut.start + 1 : cut.stop + 1]
            logits = output.logits[:, : targets.shape[1]].float()
            yield cross_entropy(logits.flatten(0, 1), targets.flatten())
        memory = [(layer.keys.detach(), layer.values.detach()) for layer in cache.layers]
        if heads is None:
            continue
        came = [_by_kv_head(one, memory[0][0].shape[1]) for one in output.attentions]
        if received:
            came = [new + _padded(old, new) for new, old in zip(came, received, strict=True)]
        for layer, (keys, values) in enumerate(memory):
            memory[layer], came[layer] = cut_down(heads, layer, keys, values, came[layer], recipe)
        received = came


def cut_down(
    heads: Heads, layer: int, keys: Tensor, values: Tensor, received: Tensor, recipe: Recipe
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Hold C of ``[B, H, S, D]`` entries, as `LoCoCo` does; also what these have received."""
    length, share = keys.shape[2], recipe.capacity
    if length <= share:
        return (keys, values), received
    rest, pivots = split(received, share, recipe.window, recipe.slots)
    order = torch.arange(length, device=keys.device).expand_as(rest)
    most = length - share + recipe.slots
    places, *merged = folded(keys, values, rest, pivots, order, most, heads.of(layer))
    keys, values = keys.scatter(2, places, merged[0]), values.scatter(2, places, merged[1])
    kept = (rest & ~pivots).sort(dim=-1, stable=True).indices[..., :share]
    wide = kept[..., None].expand(-1, -1, -1, keys.shape[-1])
    return (keys.gather(2, wide), values.gather(2, wide)), received.gather(2, kept)


def _by_kv_head(attention: Tensor, heads: int) -> Tensor:
    """``[B, H_q, queries, S]`` weights as ``[B, H, S]``: summed over queries, mean of a group."""
    sums = attention.detach().float().sum(dim=2)
    return sums.view(len(sums), heads, -1, sums.shape[-1]).mean(dim=2)


def _padded(old: Tensor, new: Tensor) -> Tensor:
    return torch.nn.functional.pad(old, (0, new.shape[-1] - old.shape[-1]))


# --- training -------------------------------------------------------------------------------------


class Training:
    """A run: the heads, their optimizer, and how far they are."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel, texts: Texts) -> None:
        self.recipe, self.model, self.texts = recipe, model.requires_grad_(False), texts
        self.untrained = untrained(recipe, model).on(model.device)
        parts = (self.untrained.weight, self.untrained.bias, self.untrained.gate)
        self.heads = Heads(*(part.clone().requires_grad_() for part in parts))
        self.optimizer = torch.optim.AdamW(
            [self.heads.weight, self.heads.bias, self.heads.gate], lr=recipe.rate, weight_decay=0.0
        )
        self.step = 0
        self.curve: list[dict[str, float]] = []

    def run_interval(self) -> None:
        """INTERVAL steps, or what is left, and a row of the loss curve."""
        means = []
        for _ in range(min(INTERVAL, self.recipe.steps - self.step)):
            tokens = self.texts.batch(self.step).to(self.model.device)
            cuts = self.texts.cuts(tokens.shape[1])
            seen = []
            for loss in losses(self.model, self.heads, tokens, cuts, self.recipe):
                if loss.requires_grad:  # nothing has been folded before
                    (loss / (len(cuts) - 1)).backward()
                seen.append(loss.item())
            self.optimizer.param_groups[0]["lr"] = self.recipe.rate * (
                1 - self.step / self.recipe.steps
            )
            self.optimizer.step()
            self.optimizer.zero_grad()
            means.append(np.mean(seen))
            self.step += 1
        gate = float(self.heads.gate.detach().mean())
        self.curve.append({"step": self.step, "loss": float(np.mean(means)), "gate": gate})

    @torch.no_grad()
    def evaluate(self) -> list[dict[str, Any]]:
        """Loss of held-out texts by what is held."""
        dropped = Heads(self.heads.weight, self.heads.bias, torch.zeros_like(self.heads.gate))
        rows: dict[str, Heads | None] = {
            "full cache": None,
            "dropped": dropped,
            "untrained heads": self.untrained,
            "trained heads": self.heads,
        }
        found: dict[str, list[float]] = {name: [] for name in rows}
        for step in range(EVALUATION_BATCHES):
            tokens = self.texts.batch(HELD_OUT + step).to(self.model.device)
            cuts = self.texts.cuts(tokens.shape[1])
            for name, heads in rows.items():
                given = losses(self.model, heads, tokens, cuts, self.recipe)
                found[name].append(float(torch.stack(list(given)).mean()))
        return [{"held": name, "loss": float(np.mean(loss))} for name, loss in found.items()]

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        state = {
            "heads": [self.heads.weight, self.heads.bias, self.heads.gate],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": self.curve,
        }
        save_checkpoint(file, asdict(self.recipe), state)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint. Raises ScopeError if it has other settings."""
        state = load_checkpoint(file, asdict(self.recipe), self.model.device)
        parts = (self.heads.weight, self.heads.bias, self.heads.gate)
        for part, saved in zip(parts, state["heads"], strict=True):
            part.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], state["curve"]


def untrained(recipe: Recipe, model: PreTrainedModel) -> Heads:
    """Heads of the right shape for a model, before training."""
    config = model.config.get_text_config()
    return Heads.random(
        config.num_hidden_layers, recipe.slots, head_dim_of(config), recipe.kernel, recipe.seed
    )


def train(recipe: Recipe, model: PreTrainedModel, texts: Texts, out: Path) -> Heads:
    """Train, or go on from ``out/checkpoint.pt``, and write the folder.

    Raises ScopeError if the folder has heads already, or a checkpoint with other settings.
    """
    checkpoint, target = out / "checkpoint.pt", out / "heads.safetensors"
    if target.exists() and not checkpoint.exists():
        raise ScopeError(f"{out} has trained heads: give another --out, or remove them")
    out.mkdir(parents=True, exist_ok=True)
    training = Training(recipe, model, texts)
    if checkpoint.exists():
        training.load(checkpoint)
    with tqdm(total=recipe.steps, initial=training.step, unit="step") as bar:
        while training.step < recipe.steps:
            before = training.step
            training.run_interval()
            training.save(checkpoint)
            bar.set_postfix(loss=f"{training.curve[-1]['loss']:.4g}")
            bar.update(training.step - before)
    _write_table(out / "loss_curve.csv", training.curve)
    _write_table(out / "evaluation.csv", training.evaluate())
    training.heads.save(target)
    checkpoint.unlink(missing_ok=True)
    return training.heads


def _write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        for number, row in enumerate(rows):
            if number == 0:
                writer.writerow(row)
            writer.writerow(f"{v:.6g}" if isinstance(v, float) else v for v in row.values())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_lococo",
        description="Train LoCoCo's heads for one model, which stays as it is.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model_path", default=str(RECALL_MODEL), help="folder or .gguf file")
    parser.add_argument(
        "--text", type=Path, help="text to train on, .jsonl or plain; recall tasks if left out"
    )
    for option in fields(Recipe):
        parser.add_argument(
            f"--{option.name}", type=type(option.default), default=option.default, **option.metadata
        )
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the model",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe(**{one.name: getattr(options, one.name) for one in fields(Recipe)})
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ScopeError("no CUDA device was found: train with --device cpu")
        if options.text is None and options.model_path != str(RECALL_MODEL):
            raise ScopeError("--text is missing: the recall task is for the recall model")
        texts = read_texts(recipe, options.text, options.model_path)
        model = load_model(options.model_path, options.dtype, options.device, "eager")
        begin = time.perf_counter(), time.process_time()
        train(recipe, model, texts, options.out)
    except (ScopeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped: the same command goes on from {options.out}", file=sys.stderr)
        return 130
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(f"trained in {wall:.0f} s, of CPU time {cpu:.0f} s")
    print((options.out / "evaluation.csv").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
