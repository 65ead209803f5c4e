"""What a job had to do is counted exactly; what that takes at least follows from it."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scope import Compression, patch
from scope.generation.greedy import generate
from scope.generation.session import Session
from scope.harness.floor import Cost, Rates, against_floor, counts, told
from tests.core.tiny import random_tokens, tiny_model
from tests.harness.running import Run, read


def test_operations_and_bytes_are_those_of_the_job() -> None:
    """Two prompts in a batch of three: one row is idle throughout."""
    model, prompts, new = tiny_model("gqa", attn_implementation="eager"), (9, 14), 5
    compression = Compression("ALLKV", "None")
    with patch(model):
        session = Session(model, compression, [random_tokens(n, 0) for n in prompts], new, 3)
        for _ in generate(session, new, ()):
            pass
    done, config = counts(Cost.of(model), [session.work]), model.config
    expected = 0
    for length in prompts:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.tensor([random_tokens(length, 0)]), logits_to_keep=1)
        matrix = config.num_hidden_layers * config.num_attention_heads * length * length
        head = 2 * config.hidden_size * config.vocab_size
        expected += counter.get_total_flops() - head - 2 * matrix * config.head_dim
    assert done["prompt_operations"] == expected
    steps = new - 1  # the prompt gives the first token
    assert (done["steps"], done["row_steps"], done["idle_row_steps"]) == (steps, 2 * steps, steps)
    held = sum(length + step for length in prompts for step in range(1, new))
    token = 2 * 4 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert done["slot_bytes"] == held * token
    weights = sum(4 * weight.numel() for weight in model.parameters())
    assert done["weight_bytes"] == steps * (weights - 4 * config.hidden_size * config.vocab_size)


def test_a_floor_is_what_rates_make_of_it() -> None:
    done = {"prompt_operations": 600, "weight_bytes": 50, "slot_bytes": 30, "steps": 4}
    done |= {"row_steps": 9, "idle_row_steps": 3}
    floor = against_floor(done, Rates(bytes=20.0, operations=100.0), seconds=20.0)
    assert (floor["prompts"], floor["steps"], floor["share"]) == (6.0, 4.0, 0.5)
    spent = {"prompts": 8.0, "steps": 11.0, "capture": 1.0, "writing": 0.5}
    line = told("H2O", {"work": done, "floor": floor, "spent": spent}, 20.0)
    assert "20.0 s, of which the floor is 50%" in line
    assert "25% of the rows idle" in line


def test_every_run_counts_its_work(run: Run) -> None:
    folder = run()
    [start] = json.loads((folder / "run.json").read_text())["starts"]
    records = read(folder / "H2O.json")
    assert start["work"]["prompts"] == len(records)
    assert start["work"]["row_steps"] == sum(r["generated_tokens"] - 1 for r in records)
    assert "floor" not in start  # no floor is claimed of a CPU
    assert start["spent"]["steps"] == pytest.approx(start["seconds"], rel=0.9)
