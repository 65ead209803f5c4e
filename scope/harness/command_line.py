"""From a command line, and the YAML file that it may name, to runs."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from scope.errors import ScopeError
from scope.harness.config import BatchSize, ByteCount, RunConfig
from scope.harness.grid import Exclusions, combinations
from scope.harness.log import SERVICES
from scope.methods.fidelity import Fidelity, choices_of
from scope.methods.options import Option
from scope.registry import readers_of_options

# The original's command line names this option in the plural.
_ALIASES = {"max_capacity_prompts": "max_capacity_prompt"}

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Command:
    """What a command line asks for: one run or several, to be planned or to be done."""

    runs: list[RunConfig]
    dry_run: bool
    tensor_parallel: bool = False
    log_to: str | None = None
    together: bool = False


def parse_command(arguments: Sequence[str] | None = None) -> Command:
    """Read the command line and the YAML file it may name.

    A YAML file holds option names and values, and may hold ``runs``, a list of mappings that are
    run one after another. What stands beside ``runs``, or on the command line, all of them share:
    each takes what its methods read. A list stands for a run with each of its values, combined with
    those of every other list; ``exclude`` lists the labels of those to leave out. The command line
    wins over the file.

    Raises:
        ScopeError: for an unknown option in the file, or a value of the wrong type.
    """
    options = vars(_parser().parse_args(arguments))
    dry_run, config_file = options.pop("dry_run"), options.pop("config")
    tensor_parallel, log_to = options.pop("tensor_parallel"), options.pop("log_to")
    together = options.pop("together")
    if together and tensor_parallel:
        raise ScopeError("--together does not go with --tensor_parallel; leave one of them out")
    common = _plainly_named(_read_yaml(config_file)) if config_file else {}
    excluded = Exclusions(common.pop("exclude", []))
    runs = common.pop("runs", None)
    if runs is None:
        common, runs = {}, [common | options]
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs) or not runs:
        raise ScopeError(f"{config_file}: `runs` must be a list of option mappings")
    configs = [
        config
        for run in map(_plainly_named, runs)
        for config in _grid(common | run | options, own=run.keys())
        if config.compression.label not in excluded
    ]
    excluded.check_used()
    if not configs:
        raise ScopeError(f"{config_file}: `exclude` leaves none of the runs")
    _refuse_unread({*common, *options}, configs)
    return Command(configs, dry_run, tensor_parallel, log_to, together)


def _grid(values: Mapping[str, Any], own: Collection[str]) -> list[RunConfig]:
    """The runs of one mapping, each once: where methods do not read what is listed, some are equal.

    Args:
        values: options, with those that other mappings share.
        own: those of this mapping alone.
    """
    whole = [option.name for option in _own_options() if _kind(option.type)[1]]
    choices = list(combinations(values, whole))
    shared = values.keys() if len(choices) > 1 else values.keys() - own
    configs: dict[tuple[Any, ...], RunConfig] = {}
    for choice in choices:
        config = _run_config(choice, frozenset(shared))
        read = {name: value for name, value in choice.items() if name not in _method_options()}
        configs.setdefault((str(read), config.compression), config)
    _refuse_unread(own, configs.values())
    return list(configs.values())


def _refuse_unread(names: Collection[str], configs: Collection[RunConfig]) -> None:
    read = {name for config in configs for name in config.compression.options}
    for name in names & _method_options().keys() - read:
        raise ScopeError(f"{name} is read by none of the runs; leave it out")


class Parser(argparse.ArgumentParser):
    """Tells bad arguments in one line, as the program tells everything else."""

    def error(self, message: str) -> NoReturn:
        raise ScopeError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_longgenbench.py",
        description="Generate LongGenBench answers with a compressed KV cache.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file of these options")
    parser.add_argument(
        "--dry_run", action="store_true", default=False, help="print the plan; load no weights"
    )
    parser.add_argument(
        "--tensor_parallel",
        action="store_true",
        default=False,
        help="split the model over the processes that torchrun --nproc_per_node N has started",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        default=False,
        help="let data sets of one configuration decode in one batch, which reads the weights once "
        "for all; each still has its own result file",
    )
    parser.add_argument(
        "--log_to", choices=SERVICES, default=None, help="tell how far the runs are"
    )
    for option in _own_options():
        kind, many = _kind(option.type)
        default = "" if option.default in (None, MISSING) else f" (default {option.default})"
        parser.add_argument(
            f"--{option.name}",
            type=_converter(option.name, kind),
            choices=kind if isinstance(kind, tuple) else None,
            nargs="+" if many else None,
            help=option.metadata["help"] + default,
        )
    methods = parser.add_argument_group(
        "options of methods, refused where no chosen one reads them"
    )
    aliases = {name: alias for alias, name in _ALIASES.items()}
    for name, (option, readers) in _method_options().items():
        default = "" if option.default is None else f" (default {option.default})"
        methods.add_argument(
            *(f"--{spelling}" for spelling in (aliases.get(name), name) if spelling),
            dest=name,
            type=_converter(name, option.kind),
            choices=option.kind if isinstance(option.kind, tuple) else None,
            help=f"{option.help.replace('%', '%%')}{default}; read by {', '.join(readers)}",
        )
    switches = parser.add_argument_group("single switches of --fidelity")
    for switch in fields(Fidelity):
        switches.add_argument(
            f"--fidelity.{switch.name}",
            metavar="{" + ",".join(str(choice).lower() for choice in choices_of(switch.name)) + "}",
            help=f"paper: {str(switch.default).lower()}",
        )
    return parser


def _own_options() -> list[Any]:
    return [option for option in fields(RunConfig) if option.metadata]


def _method_options() -> Mapping[str, tuple[Option, list[str]]]:
    """Those of the methods that are not the harness's too."""
    own = {option.name for option in _own_options()}
    return {name: found for name, found in readers_of_options().items() if name not in own}


def _kind(annotation: Any) -> tuple[Any, bool]:
    """A type, or the allowed values; and whether the option takes several."""
    if annotation == BatchSize:
        return annotation, False
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is list:
        return arguments[0], True
    if get_origin(annotation) is Literal:
        return tuple(arguments), False
    if arguments:
        return _kind(arguments[0])
    return annotation, False


def _converter(name: str, kind: Any) -> Callable[[str], Any]:
    """Takes a text of the command line for a value."""

    def convert(text: str) -> Any:
        try:
            return _convert(name, kind, text)
        except ScopeError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


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


def _plainly_named(values: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {_ALIASES.get(str(name), str(name)): value for name, value in values.items()}
    if len(plain) < len(values):
        twice = next(alias for alias in _ALIASES if alias in values)
        raise ScopeError(f"{twice} and {_ALIASES[twice]} are one option; give it once")
    return plain


def _run_config(values: Mapping[str, Any], shared: frozenset[str]) -> RunConfig:
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    own = {option.name: option for option in _own_options()}
    of_methods = _method_options()
    for name, value in values.items():
        if name.startswith("fidelity."):
            overrides[name.removeprefix("fidelity.")] = value
        elif name in own:
            settings[name] = _value(name, own[name], value)
        elif name in of_methods:
            kind = of_methods[name][0].kind
            options[name] = None if value is None else _convert(name, kind, value)
        else:
            raise ScopeError(f"unknown option {name!r} in the config file; see --help")
    if "model_path" not in settings:
        raise ScopeError("--model_path is missing: a hub id, a local folder or a .gguf file")
    return RunConfig(**settings, options=options, shared=shared, fidelity_overrides=overrides)


def _value(name: str, option: Any, value: Any) -> Any:
    kind, many = _kind(option.type)
    if value is None:
        if name == "decoding_metric":  # YAML reads the strategy None as a null
            return "None"
        if option.default is not None:
            raise ScopeError(f"{name} has no value; give it one or leave it out")
        return None
    if many:
        return [_convert(name, kind, one) for one in (value if type(value) is list else [value])]
    return _convert(name, kind, value)


def _convert(name: str, kind: Any, value: Any) -> Any:
    """A value from YAML or a text from the command line, as the option's kind."""
    refused = ScopeError(f"{name} is {value!r}; expected {_expected(kind)}")
    if isinstance(kind, tuple):
        for choice in kind:
            if str(choice) == str(value):
                return choice
        raise refused
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise refused
        return str(value).lower() == "true"
    if kind == BatchSize and str(value).lower() == "auto":
        return "auto"
    if kind in (int, BatchSize):
        return _whole(value, refused)
    if isinstance(value, (dict, list, bool)):
        raise refused
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise refused from None


def _whole(value: Any, refused: ScopeError) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        raise refused from None
    if type(number) is not int or abs(number) > _LARGEST:
        raise refused
    return number


def _expected(kind: Any) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(map(str, kind))}"
    named = {
        int: f"a whole number of at most {_LARGEST}",
        BatchSize: "a whole number or auto",
        ByteCount: "a number of bytes, such as 64MiB",
        float: "a number",
        bool: "true or false",
        Path: "a path",
    }
    return named.get(kind, "a text")
