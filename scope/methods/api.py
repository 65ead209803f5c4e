"""All that a method's author imports; docs/adding_a_method.md goes through it."""

from scope.errors import ScopeError
from scope.kernels.tensors import GroupReduction
from scope.methods.budget import Budget, Capacity, Divided, Share
from scope.methods.compressor import Compressor, ScoredCompressor
from scope.methods.options import option
from scope.methods.prompt import FREE, Entries, Prompt
from scope.methods.score import AttentionScore, Score, Shape, Slots
from scope.methods.strategy import NEVER, Counts, Occupancy, RecentWindow, Strategy, Window

__all__ = [
    "FREE",
    "NEVER",
    "AttentionScore",
    "Budget",
    "Capacity",
    "Compressor",
    "Counts",
    "Divided",
    "Entries",
    "GroupReduction",
    "Occupancy",
    "Prompt",
    "RecentWindow",
    "ScopeError",
    "Score",
    "ScoredCompressor",
    "Shape",
    "Share",
    "Slots",
    "Strategy",
    "Window",
    "option",
]
