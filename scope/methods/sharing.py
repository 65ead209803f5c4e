"""Layers that have no slots of their own, and attend to those of another."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.methods.options import option

# What says that layers of one model turn or see their keys otherwise.
_KINDS = ("layer_types", "no_rope_layers")


@dataclass(frozen=True)
class Sharing:
    """Layer j attends with its own queries to the keys and values of layer i < j.

    KVSharer, arXiv 2410.18517, section 3: while a prompt is read to all of layer i's, and then to
    its slots. What these hold, layer i's queries and methods decide; layer j sees it as it is after
    the step of layer i, less what has just left. Budgets are shared out between the layers that
    have slots.
    """

    name: ClassVar[str] = "any method"

    share_layers: str | None = option(
        None,
        "layers without slots, 6=1,5=2 for layer 6 attending to 1's and 5 to 2's (KVSharer)",
    )

    def __post_init__(self) -> None:
        given = self.share_layers
        if given is None:
            return
        if not re.fullmatch(r"\d+=\d+(,\d+=\d+)*", given):
            raise ScopeError(f"share_layers is {given!r}; expected pairs of layers as 6=1,5=2")
        if len(self.sources) < len(given.split(",")):
            raise ScopeError(f"share_layers {given} names a layer twice; each attends to one other")
        for layer, source in self.sources.items():
            if source >= layer or source in self.sources:
                raise ScopeError(
                    f"share_layers {given}: {layer} cannot attend to {source}, which must be an "
                    "earlier layer that has slots of its own"
                )

    @property
    def sources(self) -> Mapping[int, int]:
        """Whose slots the layers without slots attend to."""
        pairs = [pair.split("=") for pair in (self.share_layers or "").split(",") if pair]
        return {int(layer): int(source) for layer, source in pairs}

    def owners(self, config: PreTrainedConfig) -> list[int]:
        """The layers of a model that have slots.

        Raises:
            ScopeError: where this model's layers cannot share.
        """
        layers = config.num_hidden_layers
        for layer, source in self.sources.items():
            if layer >= layers:
                raise ScopeError(
                    f"share_layers {self.share_layers} names layer {layer}, and the model has "
                    f"{layers}, counted from 0"
                )
            for kinds in (getattr(config, kind, None) for kind in _KINDS):
                if kinds and kinds[layer] != kinds[source]:
                    raise ScopeError(
                        f"share_layers {self.share_layers}: layers {layer} and {source} of this "
                        "model turn or see their keys otherwise; share between layers of one kind"
                    )
        return [layer for layer in range(layers) if layer not in self.sources]

    def readers(self, owner: int) -> int:
        """How many layers attend to the slots of one that has some, itself among them."""
        return 1 + list(self.sources.values()).count(owner)
