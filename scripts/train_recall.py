"""Trains the tiny Llama of the recall task and scores it with the full cache.

    OMP_NUM_THREADS=1 python -m scripts.train_recall --out recall-32
    python -m scripts.train_recall --out recall-64 --records 64 --tokens 8192 --device cuda

Writes the model, its tokenizer, ``loss_curve.csv`` and ``accuracy.csv`` into the folder. A run that
was killed goes on from its last checkpoint when the same command is given again, to the same
weights as without the interruption. The same settings give the same weights on the same machine and
number of threads.

First the model learns to look records up, without filler, then to spell the filler, and at last the
learning rates fall to 0. No compression of the cache is used.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM

from scope.errors import ScopeError
from scope.recall.build import build_rows
from scope.recall.llama import LlamaSize, build_model
from scope.recall.scoring import score
from scope.recall.task import DIGIT, RECORD_FIELDS, REFERENCE, SUM, WORD, RecallTask
from scope.recall.tokenizer import build_tokenizer
from scope.recall.vocabulary import EOS, TOKEN_ID
from scripts.checkpoint import load_checkpoint, save_checkpoint

FEWEST_RECORDS = 4  # where the curriculum begins
INTERVAL = 25  # steps between checkpoints, rows of the loss curve, and raises of n
WARMUP_STEPS = 100
LEARNED = 0.8  # accuracy of w at which n is raised, and of w, d, X at which sums are made easier
FLUENT = 0.98  # accuracy of w, d, X and s at which filler is added
EVALUATION_SEED = 1000
EVALUATION_PROMPTS = 256
CURVE_COLUMNS = ("step", "records", "loss", "word", "digit", "reference", "sum", "letters", "next")


@dataclass(frozen=True)
class Recipe:
    """What is learned and how. Raises ScopeError for values that cannot work."""

    seed: int = field(default=0, metadata={"help": "of the initial weights and the examples"})
    records: int = field(default=32, metadata={"help": "n at the end of the curriculum"})
    filler: int = field(default=6, metadata={"help": "letters that each answer spells"})
    hubs: int = field(default=4, metadata={"help": "early answers that the others refer to"})
    lookup_steps: int = field(default=5000, metadata={"help": "steps without filler, at most"})
    filler_steps: int = field(default=500, metadata={"help": "steps with filler, at full rates"})
    decay_steps: int = field(default=500, metadata={"help": "steps with filler, at falling rates"})
    tokens: int = field(default=2048, metadata={"help": "most tokens of a step"})
    rate: float = field(default=3e-3, metadata={"help": "learning rate: embeddings, norms (AdamW)"})
    matrix_rate: float = field(default=1.5e-2, metadata={"help": "learning rate: the rest (Muon)"})
    weight_decay: float = field(default=0.05, metadata={"help": "of all weights"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})

    def __post_init__(self) -> None:
        example = RecallTask(self.records, self.filler, self.hubs)
        if self.seed < 0:
            raise ScopeError(f"the seed must not be negative, not {self.seed}")
        if self.records < FEWEST_RECORDS:
            raise ScopeError(f"records must be at least {FEWEST_RECORDS}, not {self.records}")
        length = example.prompt_length + example.answer_length
        if self.tokens < length:
            raise ScopeError(f"tokens must be at least {length}, one example, not {self.tokens}")
        for name in ("lookup_steps", "filler_steps", "decay_steps"):
            value = getattr(self, name)
            if value <= 0 or value % INTERVAL:
                raise ScopeError(f"{name} must be a positive multiple of {INTERVAL}, not {value}")
        for name in ("rate", "matrix_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ScopeError(f"{name} must be positive, not {getattr(self, name)}")
        if self.weight_decay < 0:
            raise ScopeError(f"weight_decay must not be negative, not {self.weight_decay}")


@dataclass
class Progress:
    """How far a run is: everything but weights that its next step depends on.

    longest: the n that the curriculum has come to. copied: whether w, d and X have been right.
    lookup_end: the step at which filler begins, set earlier once all fields are right.
    """

    lookup_end: int
    step: int = 0
    longest: int = FEWEST_RECORDS
    copied: bool = False


@dataclass(frozen=True)
class Batch:
    """Sequences of one length: ``tokens`` [B, L], of which the first ``prompt_length`` are given.

    Each of the ``records`` answers is ``answer_fields`` tokens long; ``whole`` says whether these
    are all fields of the task.
    """

    tokens: np.ndarray
    prompt_length: int
    records: int
    answer_fields: int
    whole: bool


def draw_batch(recipe: Recipe, progress: Progress) -> Batch:
    """The examples of the next step, from a random stream of its own.

    Half of the batches have n = ``longest``, the others any n up to it. The lookup phase has helps
    against plateaus (results/recall/training.md has the trials):

    - Two steps of five leave some fields out of every record. Else each field is soon found by the
      field before it, which is mostly enough while n is small, instead of by the record's number.
    - Half of the batches refer to any earlier answer, not to hubs, which are easily guessed.
    - Once w, d and X are ``copied``, the digits to be added are below a random limit. Of two
      unlimited digits neither alone says anything about the sum, so that nothing would lead to
      looking the other one up.
    """
    rng = np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(progress.step,)))
    lookup = progress.step < progress.lookup_end
    longest = progress.longest
    records = longest if rng.random() < 0.5 else int(rng.integers(FEWEST_RECORDS, longest + 1))
    task = RecallTask(records, recipe.filler, recipe.hubs)
    if lookup:
        hubs = 0 if rng.random() < 0.5 else recipe.hubs
        addends = int(rng.integers(1, 11)) if progress.copied else 10
        task = RecallTask(records, filler=0, hubs=hubs, addends=addends)
    size = recipe.tokens // (task.prompt_length + task.answer_length)
    prompts, answers = task.sample(rng, size)

    whole = not lookup or progress.step % 5 not in (1, 3)
    kept = list(range(task.answer_fields))
    if not whole:
        left_out = {place for place in (WORD, DIGIT, REFERENCE) if rng.random() < 0.5}
        if left_out & {DIGIT, REFERENCE}:
            left_out.add(SUM)
        kept = [place for place in kept if place not in left_out]
    shown = [place for place in kept if place < RECORD_FIELDS]
    shuffled = prompts[:, 1:-2].reshape(size, records, RECORD_FIELDS)
    prompts = np.concatenate(
        [prompts[:, :1], shuffled[:, :, shown].reshape(size, -1), prompts[:, -2:]], axis=1
    )
    generated = answers[:, :, kept].reshape(size, -1)[:, 1:]  # the first K ends the prompt
    end = np.full((size, 1), TOKEN_ID[EOS])
    tokens = np.concatenate([prompts, generated, end], axis=1)
    return Batch(tokens, prompts.shape[1], records, len(kept), whole)


class Training:
    """A run: the model, its optimizers, and how far they are."""

    def __init__(self, recipe: Recipe, size: LlamaSize, device: str) -> None:
        self.recipe = recipe
        self.settings = asdict(recipe) | asdict(size)
        self.model = build_model(size, recipe.seed).to(device)
        decay = recipe.weight_decay
        matrices = [w for w in self.model.model.layers.parameters() if w.ndim == 2]
        norms = [w for w in self.model.parameters() if w.ndim == 1]
        others = [self.model.model.embed_tokens.weight, *norms]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, weight_decay=decay), recipe.matrix_rate),
            (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=decay), recipe.rate),
        ]
        self.progress = Progress(recipe.lookup_steps)
        self.curve: list[dict[str, float]] = []

    @property
    def steps(self) -> int:
        """Steps of the whole run, at most as long as the lookup phase goes on."""
        return self.progress.lookup_end + self.recipe.filler_steps + self.recipe.decay_steps

    def rate_factor(self) -> float:
        """What both learning rates are multiplied with at the next step."""
        step = self.progress.step
        return min(1.0, (step + 1) / WARMUP_STEPS, (self.steps - step) / self.recipe.decay_steps)

    def run_interval(self) -> None:
        """INTERVAL steps; then a row of the loss curve, and perhaps the next task."""
        progress = self.progress
        rows = []
        for _ in range(INTERVAL):
            batch = draw_batch(self.recipe, progress)
            loss, right = self._learn(batch)
            progress.step += 1
            if batch.whole:
                letters = right[SUM:-1].mean() if len(right) > SUM + 1 else torch.nan
                rows.append([loss, *right[:SUM], letters, right[-1]])
        means = torch.tensor(rows).mean(dim=0).tolist()
        row = dict(zip(CURVE_COLUMNS, [progress.step, progress.longest, *means], strict=True))
        self.curve.append(row)

        copied = min(row["word"], row["digit"], row["reference"])
        if progress.longest == self.recipe.records and min(copied, row["sum"]) > FLUENT:
            progress.lookup_end = min(progress.lookup_end, progress.step)
        if row["word"] > LEARNED:
            progress.longest = min(progress.longest * 3 // 2, self.recipe.records)
        progress.copied |= copied > LEARNED

    def _learn(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step. Returns the loss, and how often each field after K was right [answer_fields].

        The last of these fields is the K of the next answer, or <eos>.
        """
        tokens = torch.from_numpy(batch.tokens).to(self.model.device)
        states = self.model.model(tokens[:, :-1], use_cache=False).last_hidden_state
        logits = self.model.lm_head(states[:, batch.prompt_length - 1 :])
        targets = tokens[:, batch.prompt_length :]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer, rate in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * self.rate_factor()
            optimizer.step()
            optimizer.zero_grad()
        right = (logits.argmax(dim=-1) == targets).float()
        return loss.detach(), right.reshape(-1, batch.answer_fields).mean(dim=0)

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "progress": asdict(self.progress),
            "curve": self.curve,
        }
        save_checkpoint(file, self.settings, state)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint. Raises ScopeError if it has other settings."""
        state = load_checkpoint(file, self.settings, self.model.device)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress, self.curve = Progress(**state["progress"]), state["curve"]


def train(recipe: Recipe, size: LlamaSize, out: Path, device: str) -> LlamaForCausalLM:
    """Train, or go on from ``out/checkpoint.pt``, and write the folder.

    Raises ScopeError if the folder has a model already, or a checkpoint with other settings.
    """
    checkpoint = out / "checkpoint.pt"
    if (out / "model.safetensors").exists() and not checkpoint.exists():
        raise ScopeError(f"{out} has a trained model: give another --out, or remove that one")
    out.mkdir(parents=True, exist_ok=True)
    training = Training(recipe, size, device)
    if checkpoint.exists():
        training.load(checkpoint)
    with tqdm(total=training.steps, initial=training.progress.step, unit="step") as bar:
        while training.progress.step < training.steps:
            training.run_interval()
            training.save(checkpoint)
            row = training.curve[-1]
            bar.total = training.steps
            bar.set_postfix({name: f"{row[name]:.3g}" for name in ("records", "loss", "sum")})
            bar.update(INTERVAL)
    training.model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    write_table(out / "loss_curve.csv", training.curve)
    checkpoint.unlink()
    return training.model.eval()


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, task: RecallTask, num_prompts: int) -> dict[str, float]:
    """Greedy generation with the full cache over fresh prompts, 64 at a time.

    Returns the shares of right sums, in all answers and in the last quarter of them, and of the
    prompts after whose last answer generation ended by itself.
    """
    tokenizer = build_tokenizer()
    rows = build_rows(task, EVALUATION_SEED, num_prompts)
    marks, ended = [], []
    for start in range(0, num_prompts, 64):
        part = rows[start : start + 64]
        inputs = tokenizer([row["prompt"] for row in part], return_tensors="pt").to(model.device)
        outputs = model.generate(**inputs, do_sample=False, max_new_tokens=task.answer_length + 1)
        for row, output in zip(part, outputs[:, task.prompt_length :].tolist(), strict=True):
            text = tokenizer.decode(output, skip_special_tokens=True)
            marks.append(score(text, row["answers"]))
            ended.append(output[task.answer_length - 1 :][:1] == [TOKEN_ID[EOS]])
    right = np.array(marks)
    return {
        "records": task.records,
        "prompts": num_prompts,
        "sums": float(right.mean()),
        "sums_last_quarter": float(right[:, -task.records // 4 :].mean()),
        "ended": float(np.mean(ended)),
    }


def write_table(file: Path, rows: Sequence[dict[str, float]]) -> None:
    """Rows of equal keys as CSV; nan, a field that the phase does not have, stays empty."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow("" if np.isnan(value) else f"{value:.6g}" for value in row.values())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_recall",
        description="Train the tiny Llama of the synthetic recall task.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in (*fields(Recipe), *fields(LlamaSize)):
        parser.add_argument(
            f"--{option.name}", type=type(option.default), default=option.default, **option.metadata
        )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = vars(parser.parse_args(arguments))
    device, out = options.pop("device"), options.pop("out")
    try:
        recipe = Recipe(**{option.name: options[option.name] for option in fields(Recipe)})
        size = LlamaSize(**{option.name: options[option.name] for option in fields(LlamaSize)})
        if device == "cuda" and not torch.cuda.is_available():
            raise ScopeError("no CUDA device was found: train with --device cpu")
        begin = time.perf_counter(), time.process_time()
        model = train(recipe, size, out, device)
    except (ScopeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped: the same command goes on from {out}", file=sys.stderr)
        return 130
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(f"trained in {wall:.0f} s, of CPU time {cpu:.0f} s")
    lengths = sorted({max(1, recipe.records * quarter // 4) for quarter in (1, 2, 3, 4)})
    table = [
        evaluate(model, RecallTask(n, recipe.filler, recipe.hubs), EVALUATION_PROMPTS)
        for n in lengths
    ]
    write_table(out / "accuracy.csv", table)
    print((out / "accuracy.csv").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
