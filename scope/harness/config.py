"""All options of run_longgenbench.py: one dataclass, filled from the command line and from YAML."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from scope.errors import ScopeError
from scope.methods.compression import Compression
from scope.methods.decoding import Score
from scope.methods.fidelity import Fidelity
from scope.tasks.registry import TASKS

BatchSize = int | Literal["auto"]


def _option(help_text: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class RunConfig:
    """One run as the user asked for it; None leaves the choice to the fidelity preset or data."""

    model_path: str = _option("hub id, local folder, or .gguf file")
    method: str = _option(
        "prefill compressor: ALLKV, SnapKV, PyramidKV, PyramidInfer, H2O, StreamingLLM", "ALLKV"
    )
    decoding_metric: str = _option(
        "decoding strategy: None, slide, adaptive, discontinuous; over one budget for prompt and "
        "generation: h2o, slm, pyramidinfer",
        "None",
    )
    max_capacity_prompts: int = _option("C, prompt tokens kept per layer and head", 2048)
    decoding_window_size: int = _option("W, generated tokens kept", 512)
    decoding_recent_size: int = _option("R, most recent tokens, never evicted", 256)
    window_size: int | None = _option("w, last prompt tokens always kept (default 8)", None)
    kernel_size: int = _option("pooling width of SnapKV's and PyramidKV's scores", 7)
    pooling: Literal["maxpool", "avgpool"] = _option("pooling of those scores", "maxpool")
    decoding_score: Score | None = _option(
        "what tokens compete by in decoding: this step's attention, attention summed since the "
        "token came, or as controls their age or chance (default: the strategy's own)",
        None,
    )
    group_reduction: Literal["mean", "max"] = _option(
        "how the scores of the query heads of a KV head become one", "mean"
    )
    delta: int | None = _option(
        "steps per token of growth, for the published code's adaptive window and clock "
        "(default (T-R)//(W-R))",
        None,
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
    dtype: Literal["float32", "float16", "bfloat16"] | None = _option(
        "dtype of weights and cache (default bfloat16 on a GPU, float32 on a CPU)", None
    )
    device: str | None = _option("cuda, cuda:1, cpu ... (default: cuda if there is one)", None)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _option(
        "the model's attention for prompts", "sdpa"
    )
    use_cache: bool = _option("kept for the original's scripts; only true makes sense", True)
    seed: int = _option("seed of torch; greedy generation does not depend on it", 42)
    save_dir: Path | None = _option(
        "where results go (default results/runs/{method}+{metric}_decoding_window_{W}"
        "_recent_window_{R})",
        None,
    )
    compare_with: Path | None = _option(
        "a full-cache result file: also measure how often the next token is the full cache's own "
        "choice when forced along its text",
        None,
    )
    fidelity_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compression(self) -> Compression:
        """The compression settings, checked."""
        return Compression(
            method=self.method,
            decoding_metric=self.decoding_metric,
            max_capacity_prompt=self.max_capacity_prompts,
            window_size=self.window_size,
            decoding_window_size=self.decoding_window_size,
            decoding_recent_size=self.decoding_recent_size,
            kernel_size=self.kernel_size,
            pooling=self.pooling,
            decoding_score=self.decoding_score,
            group_reduction=self.group_reduction,
            delta=self.delta,
            fidelity=Fidelity.preset(self.fidelity, **self.fidelity_overrides),
        )


@dataclass(frozen=True)
class Command:
    """What a command line asks for: one run or several, to be planned or to be done."""

    runs: list[RunConfig]
    dry_run: bool


def parse_command(arguments: Sequence[str] | None = None) -> Command:
    """Read the command line and the YAML file it may name.

    A YAML file holds option names and values, and may hold ``runs``, a list of mappings that are
    run one after another with the other options shared. The command line wins over both.

    Raises:
        ScopeError: for an unknown option in the file, or a value of the wrong type.
    """
    options = vars(_parser().parse_args(arguments))
    dry_run, config_file = options.pop("dry_run"), options.pop("config")
    shared = _read_yaml(config_file) if config_file else {}
    runs = shared.pop("runs", None)
    if runs is None:
        runs = [{}]
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs) or not runs:
        raise ScopeError(f"{config_file}: `runs` must be a list of option mappings")
    return Command([_run_config({**shared, **run, **options}) for run in runs], dry_run)


class _Parser(argparse.ArgumentParser):
    """Tells bad arguments in one line, as the program tells everything else."""

    def error(self, message: str) -> NoReturn:
        raise ScopeError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run_longgenbench.py",
        description="Generate LongGenBench answers with a compressed KV cache.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file of these options")
    parser.add_argument(
        "--dry_run", action="store_true", default=False, help="print the plan; load no weights"
    )
    for option in _options():
        kind, many = _kind(option.type)
        default = "" if option.default in (None, MISSING) else f" (default {option.default})"
        parser.add_argument(
            f"--{option.name}",
            type=kind if callable(kind) else str,
            choices=None if callable(kind) else kind,
            nargs="+" if many else None,
            help=option.metadata["help"] + default,
        )
    for switch in fields(Fidelity):
        parser.add_argument(f"--fidelity.{switch.name}", help="override this one switch")
    return parser


def _options() -> list[Any]:
    return [option for option in fields(RunConfig) if option.name != "fidelity_overrides"]


def _kind(annotation: Any) -> tuple[Any, bool]:
    """A converter, or the allowed values; and whether the option takes several."""
    if annotation in _CONVERTERS:
        return _CONVERTERS[annotation], False
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is list:
        return arguments[0], True
    if get_origin(annotation) is Literal:
        return arguments, False
    if arguments:
        return _kind(arguments[0])
    return annotation, False


def _boolean(value: Any) -> bool:
    try:
        return {"true": True, "false": False}[str(value).lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, not {value!r}") from None


def _number_or_auto(value: Any) -> BatchSize:
    try:
        return "auto" if str(value).lower() == "auto" else int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or auto, not {value!r}") from None


_CONVERTERS = {bool: _boolean, BatchSize: _number_or_auto}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScopeError(f"--config {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ScopeError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ScopeError(f"--config {path}: a mapping of options was expected")
    return content


def _run_config(values: dict[str, Any]) -> RunConfig:
    settings: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    known = {option.name: option for option in _options()}
    for name, value in values.items():
        name = str(name)
        if name.startswith("fidelity."):
            overrides[name.removeprefix("fidelity.")] = value
        elif name in known:
            settings[name] = _convert(name, known[name].type, value)
        else:
            raise ScopeError(f"unknown option {name!r} in the config file; see --help")
    if "model_path" not in settings:
        raise ScopeError("--model_path is missing: a hub id, a local folder or a .gguf file")
    return RunConfig(**settings, fidelity_overrides=overrides)


def _convert(name: str, annotation: Any, value: Any) -> Any:
    """Give a value from YAML the type that the command line would have given it."""
    kind, many = _kind(annotation)
    if value is None:
        # YAML reads the strategy None as a null.
        return "None" if annotation is str else None
    if many:
        return [
            _convert(name, kind, item) for item in (value if isinstance(value, list) else [value])
        ]
    if not callable(kind):
        if value not in kind:
            raise ScopeError(f"{name} is {value!r}; expected one of {', '.join(map(str, kind))}")
        return value
    try:
        return kind(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        expected = kind.__name__.strip("_").replace("_", " ")
        raise ScopeError(f"{name} is {value!r}; expected {expected}") from None
