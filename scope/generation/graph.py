"""Recording a decode step once and replaying it: launches cost several times what they do."""

import time
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Graphed:
    """A function of one tensor as CUDA graphs, one for each kind of call.

    The first call of a kind runs as it is, which compiles its kernels; the second is recorded; from
    then on every such call replays the record, and its result lives until the next call. Where
    recording fails, all calls run as they are, after one warning; running out of memory is left to
    the caller. What lies between input and result takes the same memory in all records.

    Args:
        function: works on the GPU alone, on the same memory and shapes at every call of a kind,
            and never waits for it.
        work: what it does, for who is warned.

    Attributes:
        seconds: of the host, in which calls were compiled and recorded.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], work: str = "decoding") -> None:
        self._function, self._work = function, work
        self._inputs: dict[torch.Size, Tensor] = {}
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}
        self._failed = False
        self.seconds = 0.0

    def __call__(self, tensor: Tensor, kind: Hashable = None) -> Tensor:
        """Call it; what it does besides may depend on the kind, which the host knows."""
        if self._failed:
            return self._function(tensor)
        if tensor.shape not in self._inputs:
            self._inputs[tensor.shape] = tensor.clone()
        own = self._inputs[tensor.shape].copy_(tensor)
        recorded = self._recorded.get(kind)
        if recorded is None:
            started = time.perf_counter()
            try:
                if kind in self._recorded:
                    recorded = self._record(own)
                self._recorded[kind] = recorded
                if recorded is None:
                    return self._function(own)
            finally:
                self.seconds += time.perf_counter() - started
        graph, output = recorded
        graph.replay()
        return output

    def _record(self, tensor: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        graph = torch.cuda.CUDAGraph()
        others = [recorded[0] for recorded in self._recorded.values() if recorded is not None]
        try:
            # Threads of NCCL may ask for events meanwhile, which are not this recording's.
            pool, mode = others[0].pool() if others else None, "thread_local"
            with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
                output = self._function(tensor)
        except RuntimeError as error:
            # An allocation that fails may break the recording, whose error then hides its own.
            for cause in (error, error.__context__):
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            warnings.warn(f"{self._work} without a CUDA graph, much slower: {error}", stacklevel=2)
            self._failed = True
            return None
        return graph, output
