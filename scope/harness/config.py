"""One run as the user asks for it: the harness's own options, and those of the methods."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from scope import registry
from scope.compression import Compression
from scope.methods.fidelity import Fidelity
from scope.tasks.registry import TASKS

BatchSize = int | Literal["auto"]


class ByteCount(int):
    """A number of bytes; as a text it may have a unit, as ``64MiB``.

    Raises:
        ValueError: for any other text.
    """

    def __new__(cls, given: int | str) -> "ByteCount":
        read = re.fullmatch(r"(\d+\.?\d*) ?(|KiB|MiB|GiB)", str(given))
        if read is None:
            raise ValueError
        return super().__new__(cls, round(float(read[1]) * _UNITS[read[2]]))


_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

RUNS = Path("results/runs")

# What the published runner's scripts always say, for windows of 512 and more.
_PUBLISHED_RECENT = 256


def _option(help_text: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": help_text})


def _named(what: str, methods: Mapping[str, Any]) -> str:
    return f"{what}: {', '.join(methods)}"


@dataclass(frozen=True)
class RunConfig:
    """One run as the user asked for it; None leaves the choice to the fidelity preset or data.

    Attributes:
        options: of the methods, by name.
        shared: names among all options that other runs have too: they need not be read by this one.
        fidelity_overrides: single switches.
    """

    model_path: str = _option("hub id, local folder, or .gguf file")
    method: str = _option(_named("prefill compressor", registry.COMPRESSORS), "ALLKV")
    decoding_metric: str = _option(_named("decoding strategy", registry.STRATEGIES), "None")
    budget: str | None = _option(
        _named("prompt tokens per layer", registry.BUDGETS) + " (default: the compressor's own)",
        None,
    )
    decoding_score: str | None = _option(
        _named("what generated tokens compete by", registry.SCORES)
        + " (default: the strategy's own)",
        None,
    )
    kv_bytes: ByteCount | None = _option(
        "budget of a sequence: bytes of keys and values, as 64MiB, of which the decode pool takes "
        "what it does and max_capacity_prompt (C) what is left",
        None,
    )
    kv_tokens: int | None = _option(
        "the same in tokens: prompt and decode pool, per layer and cached head on average", None
    )
    fidelity: str = _option("follow the paper or the published code: paper, upstream", "paper")

    dataset: list[str] | None = _option(
        f"data sets in the order to run: {' '.join(TASKS)} (default: the published ones; for "
        "--data_file, the one its name begins with)",
        None,
    )
    K: int | None = _option(
        "questions per prompt; with 30 and 60, csqa takes 40 and 80 (default 30, or --data_file's)",
        None,
    )
    data_dir: Path = _option(
        "folder of {dataset}/{dataset}_{K}.jsonl files", Path("data/LongGenBench")
    )
    data_file: Path | None = _option("one file to run instead of those in data_dir", None)
    max_num_examples: int | None = _option("run the first so many examples only", None)
    drop_rows: list[int] | None = _option("rows of the data file, from 0, to leave out", None)
    instruction_file: Path | None = _option("JSON object: data set to instruction", None)
    prompt_style: Literal["plain", "chat", "upstream"] | None = _option(
        "how instruction and prompt are joined (default plain)", None
    )
    truncate_prompts: bool | None = _option(
        "cut the middle out of prompts longer than the model takes, instead of refusing them", None
    )

    max_prompt_tokens: int | None = _option(
        "longest prompt, where the model's context is not the limit", None
    )
    eos: Literal["model", "tokenizer"] | None = _option(
        "whose end-of-text tokens stop a generation: all that the model's generation config names, "
        "or the tokenizer's one (default model)",
        None,
    )
    max_new_tokens: int | None = _option(
        "T (default 4096 for K <= 30, 8192 beyond; of --data_file, its own K counts)", None
    )
    min_new_tokens: int | None = _option(
        "tokens before an end of text is allowed (default 0)", None
    )
    batch_size: BatchSize = _option(
        "sequences decoded together, or auto: as many as fit in memory, a number that may differ, "
        "and with it the rounding, when a run is resumed; halved where memory runs out",
        1,
    )
    temperature: float = _option("draw tokens at this temperature; 0 takes the likeliest", 0.0)
    top_k: int = _option("draw from so many of the likeliest tokens; 0 for all", 0)
    top_p: float = _option("draw from the likeliest tokens that together have this share", 1.0)
    num_samples: int = _option("texts drawn after each prompt", 1)
    dtype: Literal["float32", "float16", "bfloat16"] | None = _option(
        "dtype of weights and cache (default bfloat16 on a GPU, float32 on a CPU)", None
    )
    device: str | None = _option("cuda, cuda:1, cpu ... (default: cuda if there is one)", None)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _option(
        "the model's attention for prompts", "sdpa"
    )
    use_cache: bool = _option("kept for the original's scripts; only true makes sense", True)
    seed: int = _option("seed of scores by chance, of sampled texts, and of torch", 42)
    save_dir: Path | None = _option(
        "where results go (default {results_dir}/{method}+{metric}_decoding_window_{W}"
        "_recent_window_{R}, and what else differs from its default)",
        None,
    )
    results_dir: Path = _option("where folders lie that have their default name", RUNS)
    compare_with: Path | None = _option(
        "a full-cache result file, or `full` for that of the same settings in the default folder: "
        "also measure how often the next token is the full cache's own choice when forced along "
        "its text",
        None,
    )
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    fidelity_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compression(self) -> Compression:
        """The compression settings, checked.

        What this run was given must be read by its methods; of what it shares with others, only
        what they do read is taken.
        """
        published = self.fidelity.lower() == "upstream"
        settings = {"seed": self.seed, **self.options}
        if published and settings.get("decoding_window_size", 512) > _PUBLISHED_RECENT:
            settings.setdefault("decoding_recent_size", _PUBLISHED_RECENT)
        choices = {"budget": self.budget, "decoding_score": self.decoding_score}
        settings |= {name: value for name, value in choices.items() if value is not None}
        given = {*self.options, *choices} & settings.keys()
        return Compression.from_shared(
            self.method,
            self.decoding_metric,
            fidelity=Fidelity.preset(self.fidelity, **self.fidelity_overrides),
            must_read=given - self.shared,
            **settings,
        )
