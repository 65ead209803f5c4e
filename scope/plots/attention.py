"""Attention of a whole generation, seen at once."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers import PreTrainedModel

Maps = list[NDArray[np.float32]]


@torch.inference_mode()
def attention_maps(model: PreTrainedModel, tokens: Sequence[int]) -> Maps:
    """Attention of every token to those before it, with nothing evicted.

    One forward over prompt and generation gives the same maps as decoding token by token.

    Args:
        model: loaded with ``attn_implementation="eager"``, which alone gives the weights.
        tokens: ids of prompt and generation.

    Returns:
        One ``[H_q, n, n]`` array per layer; row i is the attention of token i.
    """
    ids = torch.tensor([tokens], device=model.device)
    attentions = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    return [layer[0].float().cpu().numpy() for layer in attentions]


def heavy_hitters(attention: NDArray[np.float32], share: float = 0.15) -> NDArray[np.int64]:
    """Positions of the keys that a query attends to most.

    Args:
        attention: ``[H_q, n]``, one token's attention in one layer; averaged over the heads.
        share: how many of the n keys to return.

    Returns:
        Sorted positions, at least one.
    """
    mean = attention.mean(axis=0)
    count = max(round(share * len(mean)), 1)
    return np.sort(np.argsort(-mean, kind="stable")[:count])


def draw_heavy_hitters(
    axes: Axes, maps: NDArray[np.float32], prompt_length: int, rows: Sequence[int]
) -> None:
    """Where the heavy hitters of some decode steps lie in one layer; the line ends the prompt.

    Args:
        axes: where to draw.
        maps: ``[H_q, n, n]``.
        prompt_length: tokens of the prompt.
        rows: decode steps to show, 1-based: step t is the t-th generated token's query.
    """
    for height, step in enumerate(rows):
        row = prompt_length + step - 1
        keys = heavy_hitters(maps[:, row, : row + 1])
        axes.scatter(keys, np.full(len(keys), height), marker="|", s=60, linewidths=0.8)
    axes.axvline(prompt_length - 0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"step {step}" for step in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("position of the key")


def draw_maps(
    maps: Maps, layers: Sequence[int], heads: Sequence[int], rows: slice, columns: slice
) -> Figure:
    """Attention of several layers and heads, one picture each.

    The colour scale is the square root of the attention, so that small shares are seen too.

    Args:
        maps: as `attention_maps` gives them.
        layers: one line of pictures each.
        heads: one column each.
        rows: which queries to show.
        columns: which keys to show.
    """
    size = (2.2 * len(heads), 2.0 * len(layers))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(layers), len(heads), squeeze=False)
    for layer, line in zip(layers, panels, strict=True):
        for head, axes in zip(heads, line, strict=True):
            part = np.sqrt(maps[layer][head][rows, columns])
            first_row, first_column = rows.start or 0, columns.start or 0
            bottom, right = first_row + len(part) - 0.5, first_column + part.shape[1] - 0.5
            axes.imshow(
                part,
                cmap="magma",
                vmin=0,
                vmax=1,
                aspect="auto",
                extent=(first_column - 0.5, right, bottom, first_row - 0.5),
            )
            axes.set_title(f"layer {layer} head {head}", fontsize=8)
            axes.set_xlabel("key")
            axes.set_ylabel("query")
            axes.label_outer()
    return figure
