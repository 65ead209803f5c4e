"""What happens where a CUDA graph cannot be recorded; torch's recorder is played by a stand-in."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from scope.generation.graph import Graphed


@pytest.fixture(params=[False, True], ids=["sound", "broken"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's, which may raise an error of its own when what it recorded has failed."""

    @contextmanager
    def graph(recorded: object, pool: object = None, **mode: object) -> Iterator[None]:
        try:
            yield
        finally:
            if request.param:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)


def failing(error: RuntimeError) -> Graphed:
    """Runs as it is, and fails when it is recorded."""
    calls: list[Tensor] = []

    def function(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        if len(calls) == 2:
            raise error
        return tensor + 1

    graphed = Graphed(function)
    graphed(torch.zeros(1))
    return graphed


@pytest.mark.usefixtures("recorder")
def test_out_of_memory_is_left_to_the_caller() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        failing(torch.OutOfMemoryError("too large"))(torch.ones(1))


@pytest.mark.usefixtures("recorder")
def test_other_failures_are_warned_of_once() -> None:
    graphed = failing(RuntimeError("cannot be recorded"))
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        assert graphed(torch.ones(1)) == 2
    assert graphed(torch.full((1,), 5.0)) == 6


def test_every_kind_of_call_has_a_record_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, recording = [], []

    class Recorded:
        def replay(self) -> None:
            calls.append(("replayed", *self.kinds))

        def pool(self) -> object:
            return self.memory

    @contextmanager
    def graph(recorded: Recorded, pool: object = None, **mode: object) -> Iterator[None]:
        recording.append(recorded)
        recorded.memory = pool or object()
        recorded.kinds = [kind]
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    graphed = Graphed(lambda tensor: calls.append(kind) or tensor + 1)
    for kind in "aabbbab":
        assert graphed(torch.zeros(1), kind) == 1
    # Once as it is, once recorded and then replayed.
    first = ["a", "a", ("replayed", "a"), "b", "b", ("replayed", "b")]
    assert calls == [*first, *[("replayed", kind) for kind in "bab"]]
    assert len({recorded.memory for recorded in recording}) == 1
