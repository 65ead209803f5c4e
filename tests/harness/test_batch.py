"""Batches: as many rows as fit, and half of them each time that memory runs out."""

import gc
import json
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scope import ScopeError, patch
from scope.cache.plan import CachePlan
from scope.generation.greedy import generate
from scope.generation.session import Session
from scope.harness import batch
from scope.harness.batch import first_batch_size, halving
from scope.harness.command_line import parse_command
from scope.harness.jobs import Job, jobs_of
from tests.core.tiny import VOCABULARY, random_tokens, tiny_model
from tests.harness.running import FULL, Run, read

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PROMPTS = [random_tokens(length, seed=length) for length in (30, 12, 21)]


def small_memory(most_rows: int, steps: int) -> Callable[[Session, Tensor], Tensor]:
    """`Session.step`, but after so many steps larger batches run out of memory."""
    step, left = Session.step, steps

    def limited(session: Session, tokens: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0 and session.batch_size > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(session, tokens)

    return limited


def test_runs_out_of_memory_and_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A row ends in the middle, so that something is written when memory runs out.
    undisturbed = run("undisturbed", batch_size=4, max_new_tokens=150)
    lengths = [record["generated_tokens"] for record in read(undisturbed / "H2O.json")]
    steps = min(lengths) + 1
    assert steps < max(lengths)
    sessions: list[weakref.ref[Session]] = []
    make = Session.__init__

    def watched(session: Session, *args: object) -> None:
        # What came before is gone when the next is made: two caches would not fit.
        gc.collect()
        assert [ref for ref in sessions if ref() is not None] == []
        sessions.append(weakref.ref(session))
        make(session, *args)

    monkeypatch.setattr(Session, "__init__", watched)
    monkeypatch.setattr(Session, "step", small_memory(most_rows=1, steps=steps))
    capsys.readouterr()
    disturbed = run("disturbed", batch_size=4, max_new_tokens=150)
    assert (disturbed / "H2O.json").read_bytes() == (undisturbed / "H2O.json").read_bytes()
    error = capsys.readouterr().err
    warnings = [line for line in error.splitlines() if line.startswith("warning: out of memory")]
    assert warnings == [f"warning: out of memory; the batch is now {size}" for size in (2, 1)]
    first, second = (json.loads((f / "run.json").read_text()) for f in (undisturbed, disturbed))
    assert first["metrics"]["batch_size"] == 4
    assert second["metrics"]["batch_size"] == 1
    assert second["metrics"]["generated_tokens"] == sum(lengths)
    assert len(sessions) == 3


def test_comparison_runs_out_of_memory_and_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = run("full", **FULL) / "ALLKV.json"
    found = []
    for name, most_rows in (("undisturbed", 5), ("disturbed", 1)):
        folder = run(name, batch_size=3)  # so that only the comparison is disturbed
        monkeypatch.setattr(Session, "step", small_memory(most_rows, steps=50))
        run(name, batch_size=3, compare_with=full)
        monkeypatch.undo()
        found.append(json.loads((folder / "run.json").read_text())["metrics"]["agreement"])
    for name in ("equal_tokens", "mean_kl", "by_prompt", "by_distance"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5)


def test_one_row_does_not_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Session, "step", small_memory(most_rows=0, steps=3))
    with pytest.raises(AssertionError):
        run(batch_size=3)
    error = capsys.readouterr().err
    assert "error: out of memory with a batch of 1; lower --max_capacity_prompts" in error
    assert "Traceback" not in error


@on_gpu
def test_memory_is_free_again_before_the_next_try() -> None:
    """Of 1 GiB, 64 rows would take 2.5, and 16 of them 0.6."""
    new, model = 50_000, tiny_model("gqa").cuda()
    compression = job_of(decoding_window_size=new, max_new_tokens=new).compression

    def decode(batch_size: int) -> None:
        session = Session(model, compression, PROMPTS[:1] * 64, new, batch_size)
        assert len(list(generate(session, 20, ()))) == 64

    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 2**30
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        with patch(model):
            assert halving(64, decode) == 16
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_other_errors_pass() -> None:
    def work(batch_size: int) -> None:
        raise ScopeError(f"with {batch_size}")

    with pytest.raises(ScopeError, match="with 3"):
        halving(3, work)


# --- auto -----------------------------------------------------------------------------------------


def job_of(**options: object) -> Job:
    settings = {
        "model_path": "m",
        "device": "cpu",
        "method": "PyramidKV",
        "decoding_metric": "slide",
        "dataset": "gsm8k",
        "max_capacity_prompts": 16,
        "decoding_window_size": 8,
        "decoding_recent_size": 3,
        "max_new_tokens": 12,
        "batch_size": "auto",
    } | options
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    [job] = jobs_of(parse_command(arguments).runs[0])
    return job


@pytest.mark.parametrize("fidelity", ["paper", "upstream"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_row_are_exact(fidelity: str, dtype: str) -> None:
    job = job_of(fidelity=fidelity, dtype=dtype, method="H2O")
    model = tiny_model("gqa", dtype=getattr(torch, dtype))
    lengths = [len(prompt) for prompt in PROMPTS]
    plan = CachePlan.make(model.config, job.compression.recipe(12), 12, lengths)
    # Beside the slots: attention logits of four heads, and those of the vocabulary twice.
    logits = 4 * 4 * max(plan.slots) + VOCABULARY * (4 + model.dtype.itemsize)
    with patch(model):
        session = Session(model, job.compression, PROMPTS, 12)
        session.prefill()
    held = [
        part.nbytes
        for layer in session.cache.layers
        for part in (*vars(layer).values(), *layer.state.values())
        if isinstance(part, Tensor)
    ]
    assert sum(held) == len(PROMPTS) * (plan.row_bytes(model.dtype) - logits)
    assert session.cache.kv_bytes == len(PROMPTS) * plan.kv_bytes(model.dtype)


@pytest.mark.parametrize(("rows", "expected"), [(0.5, 1), (1.0, 2), (1.9, 2), (2.0, 3), (9.0, 3)])
def test_as_many_rows_as_fit(rows: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job, model = job_of(), tiny_model("gqa")
    lengths = [len(prompt) for prompt in PROMPTS]
    plan = CachePlan.make(model.config, job.compression.recipe(12), 12, lengths)
    row = plan.row_bytes(model.dtype)
    monkeypatch.setattr(batch, "_room_beside_one", lambda *args: round(rows * row))
    assert first_batch_size(job, model, PROMPTS) == expected
    # Where each takes as much again, the first one too, half as many fit.
    assert first_batch_size(job, model, PROMPTS, extra_bytes=row) == {9.0: 3}.get(rows, 1)


def test_a_number_is_taken_as_it_is() -> None:
    model = tiny_model("gqa")
    assert first_batch_size(job_of(batch_size=2), model, PROMPTS) == 2
    assert first_batch_size(job_of(batch_size=7), model, PROMPTS) == len(PROMPTS)


def test_auto(run: Run) -> None:
    alone, auto = run("alone", batch_size=1), run("auto", batch_size="auto")
    assert (auto / "H2O.json").read_bytes() == (alone / "H2O.json").read_bytes()
    described = json.loads((auto / "run.json").read_text())
    assert described["config"]["batch_size"] == "auto"
    assert described["metrics"]["batch_size"] == 5


@on_gpu
def test_auto_fills_the_gpu() -> None:
    """With so many slots that some hundred rows of a tiny model take all memory."""
    new, model = 100_000, tiny_model("gqa").cuda()
    options = {"decoding_window_size": new, "max_new_tokens": new, "device": "cuda"}
    job = job_of(**options, dtype="float32", method="H2O")
    prompts = [random_tokens(3000, seed=0), *([random_tokens(20, seed=1)] * 5000)]
    with patch(model):
        rows = first_batch_size(job, model, prompts)
        assert 1 < rows < len(prompts)
        session = Session(model, job.compression, prompts, new, batch_size=rows)
        tokens = session.prefill().argmax(dim=-1)
        for _ in range(3):  # as it is, recorded, replayed
            tokens = session.step(tokens).argmax(dim=-1)
        session.admit(1, 0)
    free, total = torch.cuda.mem_get_info()
    assert free < 0.05 * total
