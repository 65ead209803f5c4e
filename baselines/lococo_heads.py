"""LoCoCo's trained part: what a convolution makes of tokens that have no slot of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.kernels.tensors import Mixer
from scope.methods.rope import head_dim_of

RECALL = "recall"  # names the heads that the recall model comes with


def path_of(name: str) -> Path:
    """The file that a name of heads stands for.

    Raises:
        ScopeError: where there is none.
    """
    path = Path(str(files("scope.recall"))) / "lococo.safetensors" if name == RECALL else Path(name)
    if not path.is_file():
        raise ScopeError(
            f"heads {name}: no such file; train some with python -m scripts.train_lococo, or say "
            f"{RECALL} for those of the recall model"
        )
    return path


@dataclass(frozen=True)
class Heads:
    """One `Mixer` a layer, shared by its heads.

    Attributes:
        weight: ``[N, M, 2D, kernel]``, an odd kernel.
        bias: ``[N, M]``.
        gate: ``[N]``, g.
    """

    weight: Tensor
    bias: Tensor
    gate: Tensor

    @classmethod
    def random(cls, layers: int, slots: int, head_dim: int, kernel: int, seed: int) -> "Heads":
        """Untrained heads: normal weights, g = 0.5, as the published code begins."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(layers, slots, 2 * head_dim, kernel, generator=generator)
        return cls(weight, torch.zeros(layers, slots), torch.full((layers,), 0.5))

    @classmethod
    def load(cls, name: str) -> "Heads":
        """Read a file, or the heads of the recall model.

        Raises:
            ScopeError: where there is no such file, or it holds something else.
        """
        with _opened(name) as file:
            return cls(**{field.name: file.get_tensor(field.name) for field in fields(cls)})

    def save(self, path: Path) -> None:
        """Write a file, in 16 bits."""
        save_file({field.name: getattr(self, field.name).half() for field in fields(self)}, path)

    @property
    def slots(self) -> int:
        """M, how many merged tokens a head holds."""
        return self.weight.shape[1]

    def on(self, device: torch.device) -> "Heads":
        """The same on a device, in float32."""
        return Heads(*(getattr(self, field.name).float().to(device) for field in fields(self)))

    def of(self, layer: int) -> Mixer:
        """Those of one layer."""
        return Mixer(self.weight[layer], self.bias[layer], self.gate[layer])


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """A file that holds heads, of whose numbers none is read.

    Raises:
        ScopeError: where there is no such file, or it holds something else.
    """
    try:
        with safe_open(str(path_of(name)), framework="pt") as file:
            weight, bias, gate = (file.get_slice(field.name).get_shape() for field in fields(Heads))
            layers, slots, _, _ = weight
            if bias != [layers, slots] or gate != [layers]:
                raise KeyError
            yield file
    except (OSError, SafetensorError, KeyError, ValueError):
        raise ScopeError(
            f"heads {name}: not a file of trained heads; make one with "
            "python -m scripts.train_lococo"
        ) from None


class Trained:
    """What methods with heads share: their file, read once for each device that asks.

    Attributes:
        heads: name of the file.
    """

    heads: str

    @cached_property
    def _by_device(self) -> dict[torch.device, Heads]:
        return {}

    def check_model(self, config: PreTrainedConfig) -> None:
        """Refuse a model that the heads were not trained for.

        Raises:
            ScopeError: where they are not a file of heads, or those of another model.
        """
        with _opened(self.heads) as file:  # asked at every start, and the numbers are many
            layers, _, channels, _ = file.get_slice("weight").get_shape()
        own_layers, head_dim = config.num_hidden_layers, head_dim_of(config)
        if own_layers > layers or channels != 2 * head_dim:
            raise ScopeError(
                f"heads {self.heads} are for a model of {layers} layers and heads of "
                f"{channels // 2}, and this one has {own_layers} and heads of {head_dim}; train "
                "heads for this model with python -m scripts.train_lococo, and name their file "
                "with heads"
            )

    def heads_for(self, keys: Tensor) -> Heads:
        """The heads beside keys."""
        if keys.device not in self._by_device:
            self._by_device[keys.device] = Heads.load(self.heads).on(keys.device)
        return self._by_device[keys.device]
