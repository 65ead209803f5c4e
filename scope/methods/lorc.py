"""LoRC: keys and values of a layer from low-rank latents of what it reads (arXiv 2410.03111)."""

from dataclasses import dataclass, fields, replace

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.methods.rope import frequencies, turned

SCRIPT = "python -m scripts.lorc"
_WORST = 1e12  # condition number: beyond it there is nothing but rounding


@dataclass(frozen=True)
class Factors:
    """The projections of one layer, for all of its heads: W = up down, of rank r.

    For x, what the layer reads, a latent ``down x`` is held; ``up`` makes of it what the projection
    would, and RoPE turns that to the token's position.

    Attributes:
        key_down, value_down: ``[r, hidden]``.
        key_up, value_up: ``[H * D, r]``.
        key_bias, value_bias: ``[H * D]``.
        paces: ``[D/2]`` float32, by how much a position turns each pair.
    """

    key_down: Tensor
    value_down: Tensor
    key_up: Tensor
    value_up: Tensor
    key_bias: Tensor
    value_bias: Tensor
    paces: Tensor

    @classmethod
    def load(cls, path: str, config: PreTrainedConfig, layer: int) -> "Factors":
        """Those of one layer of a model, as the script has written them.

        Raises:
            ScopeError: no such file, or one of another model.
        """
        names = [one.name for one in fields(cls) if one.name != "paces"]
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(f"{name}.{layer}") for name in names}
        except (OSError, SafetensorError) as error:
            raise ScopeError(
                f"low_rank {path} has no factors of layer {layer} ({error}); make the file with "
                f"{SCRIPT}"
            ) from None
        read = found["key_down"].shape[1]
        if read != config.hidden_size:
            raise ScopeError(
                f"low_rank {path} is of another model: its layers read {read} numbers of a token, "
                f"this model's {config.hidden_size}"
            )
        return cls(**found, paces=frequencies(config, layer))

    def like(self, other: Tensor) -> "Factors":
        """In the dtype and on the device of another tensor."""
        moved = {one.name: getattr(self, one.name).to(other) for one in fields(self)}
        return replace(self, **{**moved, "paces": self.paces.to(other.device)})

    def latents(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., r]`` of what the layer reads, ``[..., hidden]``, for keys and for values."""
        return read @ self.key_down.T, read @ self.value_down.T

    def keys(self, latents: Tensor, positions: Tensor) -> Tensor:
        """``[..., H, P, D]`` of ``[..., P, r]``, turned to ``[..., P]`` positions."""
        angles = (positions.float()[..., None] * self.paces)[..., None, :, :]
        cos, sin = (part.to(latents.dtype) for part in (angles.cos(), angles.sin()))
        return turned(self._heads(latents @ self.key_up.T + self.key_bias), cos, sin)

    def values(self, latents: Tensor) -> Tensor:
        """``[..., H, P, D]`` of ``[..., P, r]``."""
        return self._heads(latents @ self.value_up.T + self.value_bias)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, 2 * len(self.paces))).transpose(-3, -2)


def ranks(
    key_weights: list[Tensor], value_weights: list[Tensor], least: float, most: float
) -> list[int]:
    """The rank of each layer: the more, the more an error is multiplied on its way up.

    By how much is judged by the cumulative condition number, the product of those of a layer's two
    projections and of all above it. Its logarithm, brought to 0 for the least and 1 for the largest
    (how the paper maps it is not known to us), leads from one share of a full rank to the other.

    Args:
        key_weights, value_weights: ``[H * D, hidden]`` of every layer.
        least, most: shares of a full rank, for the last layer and for the first.
    """
    logs = torch.stack(
        [
            sum(torch.linalg.cond(weight.double()).clamp(max=_WORST).log() for weight in pair)
            for pair in zip(key_weights, value_weights, strict=True)
        ]
    )
    sums = logs.flip(0).cumsum(0).flip(0)
    steps = (sums - sums.min()) / (sums.max() - sums.min()).clamp(min=1e-9)
    full = min(key_weights[0].shape)
    return [max(1, round(full * (least + (most - least) * step))) for step in steps.tolist()]


def factorised(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``down`` ``[r, hidden]`` and ``up`` ``[H * D, r]``: up down is closest to the weight."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    down, up = values[:rank, None] * right[:rank], left[:, :rank]
    return down.to(weight.dtype).contiguous(), up.to(weight.dtype).contiguous()
