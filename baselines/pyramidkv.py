"""PyramidKV: SnapKV's scores, and more tokens for the lower layers."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.snapkv import SnapKV
from scope.budgets.pyramid import Pyramid
from scope.methods.budget import Budget


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Layer budgets form an arithmetic series around C; within a layer it is SnapKV.

    PyramidKV, arXiv 2406.02069, section 3.
    """

    name: ClassVar[str] = "PyramidKV"
    about: ClassVar[str] = "the same, more in lower layers"
    budget: ClassVar[type[Budget]] = Pyramid
