"""Tests run on one thread, without the hub and by the same examples at every time.

Without a GPU Triton interprets.
"""

import inspect
import os
from functools import cache, partial
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
    """Take two thirds of its time from Triton's interpreter.

    What it replaces at every call of every function is listed once. And it is called from a frame
    of 64 KiB: CPython takes room for frames in pieces of 16 KiB, more for a larger frame, and gives
    a piece back as soon as it is empty, at every call where a loop lies on the border of two.
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

    names = " = ".join(f"unused_{number}" for number in range(2**13))
    exec(f"def in_large_frame(call):\n    return call()\n    {names} = None", found := {})
    launch, in_large_frame = interpreter.GridExecutor.__call__, found["in_large_frame"]

    def launch_in_large_frame(*args: Any, **kwargs: Any) -> Any:
        return in_large_frame(partial(launch, *args, **kwargs))

    interpreter.GridExecutor.__call__ = launch_in_large_frame


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when Triton is imported
    if find_spec("triton") is not None:
        hasten_interpreter()
