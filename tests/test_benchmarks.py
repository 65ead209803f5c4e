"""The decode benchmark on a tiny model: its numbers, its shortcuts and its refusals."""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = {
    "shape": "tiny",
    "dtype": "float32",
    "device": "cpu",
    "prompt_length": 2000,
    "max_capacity_prompt": 64,
    "decoding_window_size": 32,
    "decoding_recent_size": 16,
    "max_new_tokens": 64,
    "start": 20,
    "steps": 10,
}
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, head dimensions, float32


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("bench_decode")


def test_one_row_per_method_and_batch_as_a_table_and_as_json(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["H2O+slide", "transformers-dynamic"]
    options = ["--batches", "1", "3", "--methods", *methods]
    options += [f"--{name}={value}" for name, value in TINY.items()]
    monkeypatch.setattr(sys, "argv", ["bench_decode.py", *options])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert {name: report[name] for name in TINY} == TINY
    rows = report["results"]
    assert [(row["method"], row["batch"]) for row in rows] == [
        (method, batch) for method in methods for batch in (1, 3)
    ]
    for line, row in zip(lines[2:-1], rows, strict=True):
        assert line.split()[:3] == [row["method"], str(row["batch"]), str(row["ms_per_step"])]
        rate = row["batch"] / row["ms_per_step"] * 1e3
        assert row["tokens_per_s"] == pytest.approx(rate, rel=0.05)
    # Ours has slots for C + W tokens and the new one; the full cache begins at step 20 and decodes
    # 3 steps and 10 timed ones.
    held = [97, 97, 2033, 2033]
    assert [row["kv_mb_per_row"] for row in rows] == [
        round(tokens * TOKEN_BYTES / 1e6, 1) for tokens in held
    ]
    # The floor is for what is read: of the embedding next to nothing, of the slots the taken ones.
    model = bench.load_model(argparse.Namespace(**TINY, model_path=None))
    weights = sum(weight.nbytes for weight in model.parameters())
    weights -= model.get_input_embeddings().weight.nbytes
    for tokens, row in zip([94, 94, 2033, 2033], rows, strict=True):
        read = weights + row["batch"] * tokens * TOKEN_BYTES
        floor = 1e3 * read / report["copy_bytes_per_second"]
        assert row["floor_ms"] == pytest.approx(floor, rel=0.05, abs=0.01)
        share = row["floor_ms"] / row["ms_per_step"]
        assert row["share_of_floor"] == pytest.approx(share, rel=0.1, abs=0.01)


@given(capacity=st.integers(0, 1000), excess=st.integers(1, 300))
def test_the_search_ends_at_most_three_percent_below_the_truth(
    bench: ModuleType, capacity: int, excess: int
) -> None:
    tried = {}

    def fits(batch: int) -> bool:
        assert batch not in tried
        tried[batch] = batch <= capacity
        return tried[batch]

    found = importlib.import_module("bench_measure").search(fits, capacity + excess)
    assert found == 0 or tried[found]
    assert capacity - found < max(1, 0.03 * found)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_that_reads_two_prompts_has_all_its_slots(bench: ModuleType, batch: int) -> None:
    args = argparse.Namespace(**TINY, model_path=None, methods=["H2O+slide"])
    model = bench.load_model(args)
    held, allocated, [compression] = {}, {}, bench._compressions(args).values()
    for args.largest_batch in (False, True):
        decoding = bench._ours(args, model, compression, batch)
        usage = next(decoding)
        for _ in range(4):
            next(decoding)
        held[args.largest_batch], allocated[args.largest_batch] = usage()
    assert allocated[True] == allocated[False] == batch * 97 * TOKEN_BYTES
    # After four steps: of two prompts C is kept, of the others the one token that was read.
    two, others = min(batch, 2), max(batch - 2, 0)
    assert held[True] == (two * 64 + others + 4 * batch) * TOKEN_BYTES
    assert held[False] == batch * (64 + 4) * TOKEN_BYTES


def test_the_floor_of_a_cache_read_in_part_is_what_is_read(bench: ModuleType) -> None:
    methods = ["ALLKV+refreshkv,working_set=100,stride=5", "ALLKV+None"]
    args = argparse.Namespace(**TINY, model_path=None, largest_batch=False, methods=methods)
    model, compressions = bench.load_model(args), bench._compressions(args)
    assert compressions[methods[0]].options["working_set"] == 100
    read, held = {}, {}
    for method, compression in compressions.items():
        decoding = bench._ours(args, model, compression, 2)
        usage = next(decoding)
        for _ in range(5):
            next(decoding)
        read[method], held[method] = usage()
    refreshed, full = methods
    lists = 2 * 2 * 2 * 100 * 4  # rows, layers, heads, slots, int32
    assert held[refreshed] == held[full] + lists
    expected = 2 * (100 + (2005 - 100) / 5) * TOKEN_BYTES
    assert read[refreshed] == pytest.approx(expected, rel=0.01)
    assert read[full] == 2 * 2005 * TOKEN_BYTES


@pytest.mark.parametrize("method", ["transformers-dynamic", "transformers-static-compiled"])
def test_a_full_cache_ends_where_the_output_does(bench: ModuleType, method: str) -> None:
    args = argparse.Namespace(**TINY, model_path=None, largest_batch=True)
    timing = bench.Timing(warm_up=3, blocks=5, steps=2)
    decoding = bench._peer(args, bench.load_model(args), method, timing)(3)
    usage = next(decoding)
    for _ in range(bench.STEPS_TO_FIT):
        next(decoding)
    assert usage() == (3 * (2000 + 64) * TOKEN_BYTES,) * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "kvpress-knorm"], "--methods kvpress-knorm runs in an environment of its"),
        (
            ["--methods", "quest"],
            "--methods quest: expected COMPRESSOR+STRATEGY[+SCORE[-between]][,OPTION=VALUE...], or",
        ),
        (["--largest_batch"], "--largest_batch and --memory_gb are about a GPU's memory"),
        (["--shape", "llama-3.1-8b"], "--shape llama-3.1-8b takes a GPU, and --device is cpu"),
        (["--batches", "1", "0"], "--batches 0: expected at least 1"),
        (["--memory_gb", "80"], "--largest_batch and --memory_gb are about a GPU's memory"),
    ],
)
def test_bad_options_end_in_one_line(
    bench: ModuleType,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"--{name}={value}" for name, value in TINY.items()]
    monkeypatch.setattr(sys, "argv", ["bench_decode.py", *options, *more])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_that_is_not_there(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--model_path", "no/such", "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --model_path no/such: ")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Quest+slide", "unknown method 'Quest'"),
        ("ALLKV+refreshkv,stride", "expected NAME=VALUE after the comma, not 'stride'"),
        ("ALLKV+None,stride=5", "stride is not an option of ALLKV"),
    ],
)
def test_a_method_that_is_none_ends_before_a_model_is_made(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--shape", "tiny", "--methods", method])
    monkeypatch.delattr(bench, "load_model")
    with pytest.raises(bench.ScopeError, match=message):
        bench.main()


def test_an_environment_without_kvpress_costs_its_rows_alone(bench: ModuleType) -> None:
    args = argparse.Namespace(
        **TINY, model_path=None, memory_gb=None, largest_batch=False, batches=[1]
    )
    args.kvpress_python = f"{sys.executable} -c 'import sys; sys.exit(3)'"
    assert list(bench._kvpress_rows(args, ["kvpress-knorm"])) == [
        {"method": "kvpress", "error": "ended with exit code 3"}
    ]
    args.kvpress_python = "no/such/python"
    with pytest.raises(bench.ScopeError, match="--kvpress_python no/such/python does not run"):
        list(bench._kvpress_rows(args, ["kvpress-knorm"]))


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (["2x32"], "--plans 2x32: expected splits, block, stages and warps as 4x32s3w1f2"),
        (["2x32s3w1f4"], "torch sees no GPU here"),
    ],
)
def test_what_attention_cannot_be_timed_with(
    plans: list[str],
    message: str,
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["bench_attention.py", "--shape", "tiny", "--plans", *plans]
    monkeypatch.setattr(sys, "argv", arguments)
    assert importlib.import_module("bench_attention").main() == 2
    assert message in capsys.readouterr().err
