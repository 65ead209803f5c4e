"""What is logged of a command while it runs."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from scope import ScopeError
from scope.harness import log
from tests.harness.running import Run


def test_examples_speed_and_accuracy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    service = SimpleNamespace(
        init=lambda **named: told.append(named),
        log=told.append,
        finish=lambda: told.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", service)
    monkeypatch.setattr(log, "_SECONDS", 0.05)
    run(log_to="trackio")
    first, *figures, last = told
    assert first == {"project": "scope", "config": {"runs": ["H2O+slide (current)"]}}
    assert last == "finished"
    done = [each["examples"] for each in figures]
    assert done == sorted(done)
    assert figures[-1]["examples"] == 5
    assert figures[-1]["share_done"] == 1
    assert figures[-1]["tokens_per_second"] > 0
    assert 0 <= figures[-1]["accuracy/H2O+slide (current)/gsm8k"] <= 100


def test_a_service_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ScopeError, match="pip install wandb"), log.logged([], "wandb"):
        pass
