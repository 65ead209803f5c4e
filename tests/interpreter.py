"""Triton's interpreter, which takes most of the tests' time, in less of its own."""

import inspect
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import triton
from triton.language import core
from triton.runtime import interpreter

_KNOWN = ("3.7.", "3.9.")


def hasten() -> None:
    """Leave out what the interpreter does again and again, and a check that small tests never fail.

    - Each sum and product of integers is also made in 64 bits, to see whether it fits into 32; what
      comes near that is larger than anything a test can interpret.
    - What is replaced in Triton's modules at every call of every function is listed once, and
      replaced once a launch.
    - What numpy calls a type is looked up in a table made anew each time.
    - The shape of every intermediate tensor is made of new constants.
    - A launch is called from a frame of 64 KiB: CPython takes room for frames in pieces of 16 KiB,
      more for a larger frame, and gives a piece back as soon as it is empty, at every call where a
      loop lies on the border of two. Which loops do depends on how deep they are called: without
      this some tests take three times as long, most of it in the operating system, others nothing.

    All this is of some versions of Triton; others interpret as they are.
    """
    if not triton.__version__.startswith(_KNOWN):
        return
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    core.tensor.__init__ = _init_tensor

    patch_lang, replaced = interpreter._patch_lang, set()
    launch, in_large_frame = interpreter.GridExecutor.__call__, _large_frame()

    def patch_once(function: Any) -> Any:
        if function.__module__ in replaced:
            return None
        replaced.add(function.__module__)
        return patch_lang(function)

    def launch_in_large_frame(*args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return in_large_frame(partial(launch, *args, **kwargs))

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_in_large_frame


@cache
def _builtins(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]


def _patch_builtin(package: Any, *more: Any) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if core.is_builtin(member):
            interpreter._patch_attr(package, name, member, *more)


def _by_name(look_up: Callable[[core.dtype], np.dtype]) -> Callable[[core.dtype], np.dtype]:
    known: dict[str, np.dtype] = {}

    def find(type: core.dtype) -> np.dtype:
        name = type.scalar.name
        if name not in known:
            known[name] = look_up(type)
        return known[name]

    return find


@cache
def _shape(*sizes: int) -> tuple[core.tuple, core.constexpr]:
    return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))


def _init_tensor(tensor: core.tensor, handle: Any, type: core.dtype) -> None:
    tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
    tensor.shape, tensor.numel = _shape(*(type.shape if type.is_block() else ()))


def _large_frame() -> Callable[[Callable[[], Any]], Any]:
    names = " = ".join(f"unused_{number}" for number in range(2**13))
    exec(f"def in_large_frame(call):\n    return call()\n    {names} = None", found := {})
    return found["in_large_frame"]
