"""The whole prompt: no prefill compression."""

from dataclasses import dataclass
from typing import ClassVar

from scope.budgets.whole import Whole
from scope.methods.budget import Budget
from scope.methods.compressor import Compressor


@dataclass(frozen=True)
class ALLKV(Compressor):
    """Keeps every prompt token."""

    name: ClassVar[str] = "ALLKV"
    about: ClassVar[str] = "everything"
    budget: ClassVar[type[Budget]] = Whole
    takes_budget: ClassVar[bool] = False
    headwise: ClassVar[bool] = True
