"""Accuracy on the recall task, measured on the spot."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scope.compression import Compression
from scope.generation.greedy import generate
from scope.generation.session import Session
from scope.harness.models import eos_token_ids
from scope.recall.build import build_rows
from scope.recall.scoring import score
from scope.recall.task import RecallTask

_MARKERS = "osD^vXP*"  # so that lines also differ in print without colours


def recall_marks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    compression: Compression,
    num_prompts: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Whether each answer of fresh recall prompts of 32 records is right.

    Args:
        model: the patched recall model.
        tokenizer: the model's.
        compression: what to keep.
        num_prompts: prompts, generated as one batch.
        seed: of the prompts.

    Returns:
        ``[num_prompts, 32]``, answers in the order asked for.
    """
    task = RecallTask()
    rows = build_rows(task, seed, num_prompts)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    session = Session(model, compression, prompts, task.answer_length)
    ends = eos_token_ids(model, tokenizer, "model")
    generations = dict(generate(session, task.answer_length, ends))
    return np.array(
        [
            score(tokenizer.decode(generations[i].tokens), row["answers"])
            for i, row in enumerate(rows)
        ]
    )


def draw_by_budget(axes: Axes, marks: Mapping[str, Mapping[int, NDArray[np.bool_]]]) -> None:
    """Mean accuracy against W, one line per method: ``marks[method][W]`` from `recall_marks`."""
    for (name, by_window), marker in zip(marks.items(), cycle(_MARKERS)):
        means = [100 * right.mean() for right in by_window.values()]
        axes.plot(list(by_window), means, marker=marker, label=name)
    axes.set_xlabel("decoding window W")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 102)


def draw_by_index(axes: Axes, marks: Mapping[str, NDArray[np.bool_]], places: int = 4) -> None:
    """Accuracy against the place of the answer, means of ``places`` neighbours."""
    for (name, right), marker in zip(marks.items(), cycle(_MARKERS)):
        means = 100 * right.mean(axis=0).reshape(-1, places).mean(axis=1)
        centres = np.arange(len(means)) * places + (places + 1) / 2
        axes.plot(centres, means, marker=marker, label=name)
    axes.set_xlabel("answer")
    axes.set_ylim(0, 102)
