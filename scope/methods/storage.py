"""How numbers are stored: less of a prompt pool that never changes; slots in 16 bits or 8."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from scope.errors import ScopeError
from scope.methods.compressor import Compressor
from scope.methods.lorc import SCRIPT
from scope.methods.minicache import is_merged
from scope.methods.options import option
from scope.methods.score import Score
from scope.methods.strategy import Counts, Strategy


@dataclass(frozen=True)
class Storage:
    """Keeps the middle of a prompt pool small, its ends in slots beside what is generated.

    In few bits: what is kept of a prompt comes in groups of tokens; keys are rounded channel by
    channel within a group, values token by token within groups of channels. The first tokens, to
    which much attention goes, and the last stay whole, as does what fills no group.

    With few channels of each key (ThinK): a head's own, the same for all of its tokens; values have
    all. Both go together, and then as many channels are stored as fill whole words.

    As one direction for two neighbouring layers, and a length for each (MiniCache): tokens that
    both hold, but for those in which they are most unlike.

    As latents (LoRC): a token once for all heads of a layer, which must hold the same ones, and of
    which keys and values are made at every step.
    """

    name: ClassVar[str] = "any method"

    prompt_bits: Literal[8, 4, 3, 2] | None = option(
        None, "bits of each number in the prompt pool (default: those of the model's dtype)"
    )
    prompt_value_bits: Literal[8, 4, 3, 2] | None = option(
        None, "the same for values alone (default: prompt_bits)"
    )
    rounding_group: Literal[16, 32, 64, 128] = option(
        64, "tokens, or channels, that are rounded together"
    )
    pruned_channels: float | None = option(
        None, "share of the channels of each key in the prompt pool that is not stored (ThinK)"
    )
    pruning_queries: int = option(32, "last queries of the prompt that channels are chosen by")
    low_rank: str | None = option(
        None,
        f"file of a model's projections of keys and values in low rank, made by {SCRIPT}: the "
        "prompt pool holds latents (LoRC)",
        file=Path,
    )
    merged_layers: float | None = option(
        None,
        "share of the layers, the deepest, of which each two hold one direction of a token's key "
        "and value in the prompt pool (MiniCache; the paper's is 0.5)",
    )
    unmerged_share: float = option(
        0.05, "share of those tokens, the most unlike in the two, that are stored as they are"
    )
    whole_sinks: int = option(4, "first tokens of the prompt pool that are stored as they are")
    whole_recent: int = option(32, "last tokens of the prompt pool that are stored as they are")
    decode_bits: Literal[8] | None = option(
        None, "bits of each number in a slot: 8 are the float type e4m3 (default: the model's)"
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if not self._says(one.name) and getattr(self, one.name) != one.default:
                needed = " or ".join(_SAYS_WITH[one.name])
                raise ScopeError(
                    f"{one.name} says nothing without {needed}; give that too, or leave it out"
                )
        for name, least in (("whole_sinks", 0), ("whole_recent", 0), ("pruning_queries", 1)):
            if getattr(self, name) < least:
                raise ScopeError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.pruned_channels is not None and not 0 <= self.pruned_channels < 1:
            raise ScopeError(
                f"pruned_channels is {self.pruned_channels}; it must be at least 0 and below 1"
            )
        for name in ("merged_layers", "unmerged_share"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ScopeError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        alone = {"low_rank", "merged_layers"} & set(self._stored_as)
        if alone and len(self._stored_as) > 1:
            raise ScopeError(f"{' and '.join(self._stored_as)} do not go together; give one")

    def _says(self, name: str) -> bool:
        needed = _SAYS_WITH.get(name)
        return needed is None or any(getattr(self, one) is not None for one in needed)

    @property
    def compacts(self) -> bool:
        """Whether anything is held beside the slots."""
        return bool(self._stored_as)

    @property
    def _stored_as(self) -> list[str]:
        return [name for name in _SMALLER if getattr(self, name) is not None]

    def key_channels(self, head_dim: int) -> int:
        """D_k, channels of a key that are stored there."""
        return self._stored_without(self.pruned_channels or 0.0, head_dim)

    def _stored_without(self, share: float, head_dim: int) -> int:
        kept = head_dim - int(share * head_dim)
        if self.prompt_bits is None:
            return kept
        filling = 16 if self.prompt_bits == 3 else 8
        return min(head_dim, -(-kept // filling) * filling)

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Of keys and of values there; None for those of the model's dtype."""
        return self.prompt_bits, self.prompt_value_bits or self.prompt_bits

    @property
    def group(self) -> int:
        """Tokens that are stored there together."""
        return 1 if self.prompt_bits is None else self.rounding_group

    @property
    def told(self) -> Mapping[str, Any]:
        """Options by name, but for those that say nothing."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is not None and self._says(name)
        }

    def slot_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Of keys and values in slots."""
        return model_dtype if self.decode_bits is None else torch.float8_e4m3fn

    def check(
        self, compressor: Compressor, strategy: Strategy, score: Score | None, frozen_prefix: str
    ) -> None:
        """Refuse methods that have no prompt pool which stays as it is, or that look at slots.

        Raises:
            ScopeError: with what would do.
        """
        looks = strategy.rewrites or (score is not None and score.kernel is None)
        if self.decode_bits is not None and looks:
            raise ScopeError(
                "decode_bits 8 goes with methods that leave keys and values to the kernels, and "
                f"{strategy.name} by {score.name if score else 'no score'} works on them itself; "
                "leave decode_bits out"
            )
        if not self.compacts:
            return
        in_part = strategy.working_set is not None
        moves = strategy.unified or in_part or strategy.rewrites
        if moves or frozen_prefix != "prompt":
            raise ScopeError(
                f"{self._stored_as[0]} needs a prompt pool that never changes and is read whole, "
                f"which {strategy.name if moves else 'frozen_prefix capacity'} does not leave; "
                "take slide, adaptive, discontinuous, periodic, rpc or None, and fidelity paper"
            )
        if self.low_rank is not None and type(compressor).compress is not Compressor.compress:
            raise ScopeError(
                f"low_rank holds tokens as they are, and {compressor.name} changes them; take "
                "another method"
            )

    def check_layers(self, num_layers: int) -> None:
        """Refuse a share of so many layers in which no two are merged.

        Raises:
            ScopeError: with the smallest share that does something.
        """
        share = self.merged_layers
        if share is None or is_merged(share, num_layers).any():
            return
        if num_layers < 2:
            raise ScopeError(
                "merged_layers holds a token for two layers, and the model has one; leave it out"
            )
        raise ScopeError(
            f"merged_layers {share} is less than two of the model's {num_layers} layers, and none "
            f"would be merged; give {math.ceil(2000 / num_layers) / 1000} or more"
        )

    def check_head(self, head_dim: int) -> None:
        """Refuse a share of so many channels in which none is left out.

        Raises:
            ScopeError: with the smallest share that does something.
        """
        share = self.pruned_channels
        if share is None or self.key_channels(head_dim) < head_dim:
            return
        shares = (n / 1000 for n in range(1000))
        least = next((n for n in shares if self._stored_without(n, head_dim) < head_dim), None)
        words = f", in whole words of {self.prompt_bits} bits" if self.prompt_bits else ""
        raise ScopeError(
            f"pruned_channels {share} leaves all {head_dim} channels of a key{words}; "
            + ("leave it out" if least is None else f"give {least} or more")
        )

    def compact(self, kept: Counts) -> Counts:
        """How many of so many tokens kept of a prompt are held there, elementwise: whole groups.

        The first axis is the layers', if some of them are merged.
        """
        if not self.compacts:
            return np.zeros_like(kept)
        if self.merged_layers is not None:
            has_partner = is_merged(self.merged_layers, len(kept))
            return (self.merged(kept).T * has_partner).T
        middle = kept - self.whole_sinks - self.whole_recent
        return np.maximum(middle, 0) // self.group * self.group

    def merged(self, kept: Counts) -> Counts:
        """How many of so many tokens kept of a prompt two layers hold together, elementwise."""
        middle = np.maximum(kept - self.whole_sinks - self.whole_recent, 0)
        return middle - np.ceil(self.unmerged_share * middle).astype(np.int64)

    def most_whole(self, kept: Counts) -> Counts:
        """Most tokens that stay whole, elementwise, of up to so many that are kept."""
        if not self.compacts or self.merged_layers is not None:
            return kept
        return np.minimum(kept, self.whole_sinks + self.whole_recent + self.group - 1)


_SMALLER = ("prompt_bits", "pruned_channels", "low_rank", "merged_layers")

# What says nothing unless one of these is given.
_SAYS_WITH = {
    "prompt_value_bits": ("prompt_bits",),
    "rounding_group": ("prompt_bits",),
    "pruning_queries": ("pruned_channels",),
    "unmerged_share": ("merged_layers",),
    "whole_sinks": _SMALLER,
    "whole_recent": _SMALLER,
}
