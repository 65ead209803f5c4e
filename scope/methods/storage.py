"""How numbers are stored: the prompt pool in few bits, since it never changes; slots in 16 or 8."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from scope.errors import ScopeError
from scope.methods.options import option
from scope.methods.score import Score
from scope.methods.strategy import Counts, Strategy


@dataclass(frozen=True)
class Storage:
    """Keeps the middle of a prompt pool in few bits, its ends in slots beside what is generated.

    What is kept of a prompt comes in groups of tokens: keys are rounded channel by channel within a
    group, values token by token within groups of channels. The first tokens, to which much
    attention goes, and the last stay whole, as does what fills no group.
    """

    name: ClassVar[str] = "the prompt pool's storage"

    prompt_bits: Literal[8, 4, 3, 2] | None = option(
        None, "bits of each number in the prompt pool (default: those of the model's dtype)"
    )
    prompt_value_bits: Literal[8, 4, 3, 2] | None = option(
        None, "the same for values alone (default: prompt_bits)"
    )
    rounding_group: Literal[16, 32, 64, 128] = option(
        64, "tokens, or channels, that are rounded together"
    )
    whole_sinks: int = option(4, "first tokens of the prompt pool that are not rounded")
    whole_recent: int = option(32, "last tokens of the prompt pool that are not rounded")
    decode_bits: Literal[8] | None = option(
        None, "bits of each number in a slot: 8 are the float type e4m3 (default: the model's)"
    )

    def __post_init__(self) -> None:
        if self.prompt_bits is None:
            for one in fields(self):
                if one.name != "decode_bits" and getattr(self, one.name) != one.default:
                    raise ScopeError(f"{one.name} says nothing without prompt_bits; give both")
        for name in ("whole_sinks", "whole_recent"):
            if getattr(self, name) < 0:
                raise ScopeError(f"{name} is {getattr(self, name)}; it must be at least 0")

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded."""
        return self.prompt_bits is not None

    @property
    def bits(self) -> tuple[int, int]:
        """Of keys and of values, where anything is rounded."""
        keys = self.prompt_bits or 0
        return keys, self.prompt_value_bits or keys

    @property
    def told(self) -> Mapping[str, Any]:
        """Options by name, but for those that say nothing."""
        named = vars(self) if self.rounds else {"decode_bits": self.decode_bits}
        return {name: value for name, value in named.items() if value is not None}

    def slot_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Of keys and values in slots."""
        return model_dtype if self.decode_bits is None else torch.float8_e4m3fn

    def check(self, strategy: Strategy, score: Score | None, frozen_prefix: str) -> None:
        """Refuse a strategy that has no prompt pool which stays as it is, and what looks at slots.

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
        if not self.rounds:
            return
        in_part = strategy.working_set is not None
        moves = strategy.unified or in_part or strategy.rewrites
        if moves or frozen_prefix != "prompt":
            raise ScopeError(
                "prompt_bits needs a prompt pool that never changes and is read whole, which "
                f"{strategy.name if moves else 'frozen_prefix capacity'} does not leave; take "
                "slide, adaptive, discontinuous or None, and fidelity paper"
            )

    def rounded(self, kept: Counts) -> Counts:
        """How many of so many tokens kept of a prompt are rounded, elementwise: whole groups."""
        if not self.rounds:
            return np.zeros_like(kept)
        middle = kept - self.whole_sinks - self.whole_recent
        return np.maximum(middle, 0) // self.rounding_group * self.rounding_group

    def most_whole(self, kept: Counts) -> Counts:
        """Most tokens that stay whole, elementwise, of up to so many that are kept."""
        if not self.rounds:
            return kept
        return np.minimum(kept, self.whole_sinks + self.whole_recent + self.rounding_group - 1)
