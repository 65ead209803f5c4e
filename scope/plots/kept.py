"""What a compressed cache holds at every step."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scope.compression import Compression
from scope.generation.session import Session


def kept_over_time(
    model: PreTrainedModel,
    compression: Compression,
    prompt: Sequence[int],
    text: Sequence[int],
    layer: int,
) -> NDArray[np.float32]:
    """Force a text and look into the cache after each step.

    Args:
        model: a patched model.
        compression: what to keep.
        prompt: token ids.
        text: token ids that follow.
        layer: which layer to look into.

    Returns:
        ``[len(text) + 1, len(prompt) + len(text)]``: after the prompt and after each token, the
        share of heads that hold each position.
    """
    session = Session(model, compression, [prompt], len(text))
    shares = np.zeros((len(text) + 1, len(prompt) + len(text)), np.float32)
    for step in range(len(text) + 1):
        if step == 0:
            session.prefill()
        else:
            session.step(torch.tensor(text[step - 1 : step]))
        positions = session.cache.layers[layer].opened().positions[0].cpu().numpy()
        held = positions[positions >= 0]
        shares[step] = np.bincount(held, minlength=shares.shape[1]) / len(positions)
    return shares


def draw_kept(axes: Axes, shares: NDArray[np.float32], prompt_length: int, title: str) -> None:
    """Position against step: dark is held by all heads, white is gone or not yet there."""
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.axvline(prompt_length - 0.5, color="black", linewidth=0.8)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("position")
    axes.set_ylabel("decode step")
