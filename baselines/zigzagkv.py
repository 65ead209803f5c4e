"""ZigZagKV: SnapKV's scores, and more tokens for layers whose attention is spread wide."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.snapkv import SnapKV
from scope.budgets.zigzag import ZigZag
from scope.methods.budget import Budget


@dataclass(frozen=True)
class ZigZagKV(SnapKV):
    """Layer budgets follow the uncertainty of attention; within a layer it is SnapKV.

    ZigZagKV, arXiv 2412.09036.
    """

    name: ClassVar[str] = "ZigZagKV"
    about: ClassVar[str] = "the same, more in layers whose attention is spread wide"
    budget: ClassVar[type[Budget]] = ZigZag
    published_delta: ClassVar[int | None] = None
