"""The benchmark of reading prompts runs anywhere and says what it should."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.core.tiny import random_tokens, tiny_model

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench_prefill

    return bench_prefill


def run(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Table and results."""
    command = "bench_prefill.py --shape tiny --device cpu --dtype float32 --max_capacity_prompt 16"
    command += " --window_size 4 --prompt_lengths 20 50 --methods H2O SnapKV-own-layers"
    monkeypatch.setattr(sys, "argv", command.split())
    bench.main()
    _, *table, last = capsys.readouterr().out.splitlines()
    return table, json.loads(last)["results"]


def test_a_row_for_every_length_and_method(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, results = run(bench, monkeypatch, capsys)
    methods = ["transformers", "H2O", "SnapKV-own-layers"]
    rows = [(length, method) for length in (20, 50) for method in methods]
    assert [(row["prompt_length"], row["method"]) for row in results] == rows
    assert len(table) == 1 + len(rows)
    for row in results:
        assert row["seconds"] >= row["host_s"] > 0
        assert ("overhead_percent" in row) == (row["method"] != "transformers")


def test_out_of_memory_is_a_row(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reader(model: object, prompts: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "_own_reader", reader)
    _, results = run(bench, monkeypatch, capsys)
    failed = [row["method"] for row in results if row.get("error") == "out of memory"]
    assert failed == ["transformers", "transformers"]
    assert not any("overhead_percent" in row for row in results)


def test_operations_are_those_of_the_products(bench: ModuleType) -> None:
    model, length = tiny_model("gqa", attn_implementation="eager"), 24
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.tensor([random_tokens(length, seed=0)]), logits_to_keep=1)
    config = model.config
    head = 2 * config.hidden_size * config.vocab_size
    matrix = config.num_hidden_layers * config.num_attention_heads * length * length
    masked = 2 * 2 * matrix * config.head_dim // 2
    assert bench._operations(model, length) == counter.get_total_flops() - head - masked
