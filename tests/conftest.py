"""Tests run on one thread, without the hub and by the same examples at every time.

Without a GPU Triton interprets.
"""

import inspect
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that a test starts
torch.set_num_threads(1)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


def hasten_interpreter() -> None:
    """Have Triton's interpreter list once what it replaces at every call of every function.

    That took a third of its time.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def builtins(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtins(package: Any, *more: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, *more)

    interpreter._patch_builtin = patch_builtins


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when Triton is imported
    if find_spec("triton") is not None:
        hasten_interpreter()
