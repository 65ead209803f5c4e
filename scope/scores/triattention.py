"""TriAttention: what a model's queries attend to on average, known from calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.methods.options import option
from scope.methods.rope import frequencies, mean_ahead, turned
from scope.methods.score import Score, Shape, Slots

_SCRIPT = "python -m scripts.calibrate_triattention"
_STEPS_AHEAD = 17  # 1, 2, 4 ... 65536


@dataclass(frozen=True)
class TriAttention(Score):
    """sum_f |E q_f| |k_f| cos(w_f (t - i + d) + phi_f) + (E |q_f| - |E q_f|) |k_f|, mean over d.

    TriAttention, arXiv 2604.04921, section 4: f runs over the pairs of RoPE, i is where the key
    stands, d is 1, 2, 4 ... 65536 steps ahead of t, and phi_f the angle between key and mean query
    before RoPE. Keys keep the angle of their position, so the first sum is their product with E q
    turned to t + d. The scores of each query head are brought to mean 0 and deviation 1 over what
    may leave, and the largest of a group counts, as in the published code.

    Attributes:
        state: E q ``[H_q, D]`` and E |q_f| - |E q_f| ``[H_q, D/2]`` of a layer, from the file.
    """

    name: ClassVar[str] = "triattention"
    about: ClassVar[str] = "the attention of the model's mean query, from a calibration file"
    seldom: ClassVar[bool] = True
    state: ClassVar[Mapping[str, Shape]] = {
        "mean_query": ("H_q", "D"), "spread": ("H_q", "D/2"), "frequencies": ("D/2",)
    }  # fmt: skip

    calibration: str | None = option(
        None, f"file of the score `triattention`, made once per model by {_SCRIPT}", file=Path
    )

    def __post_init__(self) -> None:
        if self.calibration is None or not Path(self.calibration).is_file():
            raise ScopeError(
                f"the score {self.name} needs a file of the model: calibration is "
                f"{self.calibration}, where there is none; make it with {_SCRIPT}"
            )

    def initial(self, config: PreTrainedConfig, layer: int) -> Mapping[str, Tensor]:
        paces = frequencies(config, layer)
        shapes = {
            "mean_query": (config.num_attention_heads, 2 * len(paces)),
            "spread": (config.num_attention_heads, len(paces)),
        }
        try:
            with safe_open(str(self.calibration), framework="pt") as file:
                found = {name: file.get_tensor(f"{name}.{layer}") for name in shapes}
        except SafetensorError as error:
            raise ScopeError(
                f"{self.calibration} is no calibration of layer {layer}: {error}; make it with "
                f"{_SCRIPT}"
            ) from None
        for name, shape in shapes.items():
            if found[name].shape != shape:
                raise ScopeError(
                    f"{self.calibration} is of another model: {name} of layer {layer} has shape "
                    f"{tuple(found[name].shape)}, this model's is {shape}"
                )
        return {**found, "frequencies": paces}

    def worth(self, slots: Slots) -> Tensor:
        batch, heads, _, head_dim = slots.keys.shape
        paces = slots.state["frequencies"][:, None]
        now = slots.position[:, None, None] * paces
        mean_query = turned(slots.state["mean_query"], now.cos(), now.sin())
        steps = torch.arange(_STEPS_AHEAD, device=paces.device).exp2()
        mean_query = turned(mean_query, *mean_ahead(paces, steps)).view(batch, heads, -1, head_dim)
        spread = slots.state["spread"].view(batch, heads, -1, head_dim // 2)
        keys = slots.keys.float()
        lengths = torch.hypot(*keys.chunk(2, dim=-1))
        scores = mean_query @ keys.transpose(2, 3) + spread @ lengths.transpose(2, 3)
        may_leave = slots.ranks >= slots.protected[:, None, None].clamp(min=0)
        return _standardised(scores, may_leave[:, :, None]).amax(dim=2)


def _standardised(scores: Tensor, among: Tensor) -> Tensor:
    """``[..., S]`` less its mean over some slots, in units of its deviation there."""
    count = among.sum(dim=-1, keepdim=True).clamp(min=1)
    centred = scores - (scores * among).sum(dim=-1, keepdim=True) / count
    variance = (centred.square() * among).sum(dim=-1, keepdim=True) / count
    return centred / variance.sqrt().clamp(min=1e-6)
