"""Writes tests/golden_cases, in the form of a golden folder: ``python -m tests.make_golden_cases``.

The runs are the slow reference's, not the published code's: they stand in for the published runs
where those are not at hand.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.core.upstream_reference import record
from tests.golden import compression_of, random_model

FOLDER = Path(__file__).parent / "golden_cases"
VOCABULARY, STEPS = 32, 40
NOTE = (
    "Runs of tests/core/upstream_reference.py in float64, teacher-forced. Row 0 of an array is "
    "after the prompt, row t after forced[t-1] was fed and tokens were evicted; attended_len is "
    "before that. kept_mask: numpy.packbits over original positions. prefill_kept_l, final_kept_l: "
    "positions in the order of the cache. prefill_score_l: by token before the last window_size "
    "ones. Heads are query heads."
)
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama_kv1": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral_kv4": ("mistral", {"num_key_value_heads": 4, "sliding_window": None}),
}
# C is 16 and w is 4: 10 is shorter than C, 20 is C + w, and from 24 on there are pyramids.
PROMPT_LENGTHS = (10, 20, 24, 40)
RUNTIME = {
    "max_capacity_prompt": 16,
    "window_size": 4,
    "kernel_size": 5,
    "pooling": "maxpool",
    "decoding_window_size": 9,
    "decoding_recent_size": 3,
    "delta": 4,
}
CASES: dict[str, list[tuple[str, str, int, dict[str, Any]]]] = {
    "llama_kv1": [
        ("allkv", "adaptive", 20, {}),
        ("snapkv", "slide", 24, {}),
        ("snapkv", "discontinuous", 40, {"pooling": "avgpool"}),
        ("pyramidkv", "slide", 40, {"pooling": "avgpool"}),
        ("h2o", "discontinuous", 24, {}),
        ("h2o", "h2o", 10, {}),
        ("pyramidinfer", "pyramidinfer", 20, {}),
        ("streamingllm", "slm", 24, {"window_size": 8}),
    ],
    "mistral_kv4": [
        ("allkv", "discontinuous", 20, {}),
        ("snapkv", "adaptive", 10, {}),
        ("pyramidkv", "None", 20, {}),
        ("pyramidkv", "adaptive", 24, {}),
        ("pyramidkv", "discontinuous", 40, {}),
        ("h2o", "slide", 10, {}),
        ("h2o", "h2o", 40, {}),
        # C <= 2R + 1: the published code's decoding pyramid comes in.
        (
            "pyramidinfer",
            "pyramidinfer",
            40,
            {"decoding_window_size": 12, "decoding_recent_size": 8},
        ),
    ],
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    manifest: dict[str, Any] = {"note": NOTE, "models": {}, "cases": {}}
    for seed, (model_name, (architecture, extra)) in enumerate(MODELS.items()):
        config = CONFIG | extra
        torch.manual_seed(seed)
        model = random_model(architecture, config, "eager")
        for weight in model.parameters():
            weight.data = weight.half().float()  # so that the file takes half the space
        state = {name: tensor.half() for name, tensor in model.state_dict().items()}
        if config["tie_word_embeddings"]:
            del state["lm_head.weight"]
        save_file(state, FOLDER / f"{model_name}.safetensors")
        rng = random.Random(seed)
        inputs = {
            f"prompt_L{n}": [rng.randrange(VOCABULARY) for _ in range(n)] for n in PROMPT_LENGTHS
        }
        inputs["forced"] = [rng.randrange(VOCABULARY) for _ in range(STEPS)]
        np.savez_compressed(FOLDER / f"{model_name}_inputs.npz", **inputs)
        manifest["models"][model_name] = {
            "arch": architecture,
            "config": config,
            "weights": f"{model_name}.safetensors",
            "inputs": f"{model_name}_inputs.npz",
        }
        for method, strategy, length, changes in CASES[model_name]:
            runtime = RUNTIME | {"method": method, "decoding_metric": strategy} | changes
            run = record(
                model.double(),
                compression_of(runtime),
                inputs[f"prompt_L{length}"],
                inputs["forced"],
            )
            name = f"{model_name}__{method}__{strategy}__L{length}"
            np.savez_compressed(FOLDER / f"{name}.npz", **run)
            manifest["cases"][name] = {
                "file": f"{name}.npz",
                "model": model_name,
                "prompt": f"L{length}",
                "runtime": runtime,
            }
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
