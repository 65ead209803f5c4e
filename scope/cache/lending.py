"""A prompt's keys and values that later layers attend to as well."""

from collections.abc import Mapping

from torch import Tensor

from scope.errors import ScopeError


class Lending:
    """Keeps what a layer lends of the admitted prompts until the last one has borrowed it.

    Args:
        sources: whose slots each layer attends to that has none of its own.
    """

    def __init__(self, sources: Mapping[int, int]) -> None:
        self._sources = sources
        self._lent: dict[int, tuple[Tensor, Tensor]] = {}

    def forget(self) -> None:
        """Let go of what a prefill that failed has left."""
        self._lent.clear()

    def states(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the admitted prompts that a layer attends to: its own, or another's.

        Raises:
            ScopeError: where the two are on different devices.
        """
        sources = self._sources
        if layer_idx in sources.values():
            self._lent[layer_idx] = keys, values
        if layer_idx not in sources:
            return keys, values
        source = sources[layer_idx]
        lent = self._lent[source]
        if layer_idx == max(layer for layer in sources if sources[layer] == source):
            del self._lent[source]
        if lent[0].device != keys.device:
            raise ScopeError(
                f"layer {layer_idx} attends to the slots of layer {source}, which are on "
                f"{lent[0].device}, and it is on {keys.device}; keep layers that share together"
            )
        return lent
