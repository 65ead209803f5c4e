"""Loading a model, its tokenizer or only its configuration: hub id, folder or .gguf file."""

import importlib.util
import pickle
from collections.abc import Collection
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scope.attention.splitting import split_over_ranks
from scope.attention.support import check_config
from scope.errors import ScopeError
from scope.harness.devices import check_device
from scope.harness.model_files import check_settings, check_weights
from scope.harness.progress import without_bars

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


class Models:
    """What the runs of one command load: each file is read once, and one model held at a time.

    Args:
        split: hold this process's part of each model; see `split_over_ranks`.
    """

    def __init__(self, split: bool = False) -> None:
        self._split = split
        self.config, self.tokenizer = cache(load_config), cache(load_tokenizer)
        self._key: tuple[str, ...] = ()
        self._model: PreTrainedModel | str = ""

    def model(
        self, model_path: str, dtype: str, device: str, attn_implementation: str
    ) -> PreTrainedModel:
        """As `load_model`; the one before is given up, and what failed is not tried again."""
        key = (model_path, dtype, device, attn_implementation)
        if key != self._key:
            self._key, self._model = key, ""
            try:
                self._model = load_model(*key, config=self.config(model_path), split=self._split)
            except ScopeError as error:
                self._model = str(error)
        if isinstance(self._model, str):
            raise ScopeError(self._model)
        return self._model


def load_config(model_path: str) -> PreTrainedConfig:
    """The configuration of a supported model.

    Raises:
        ScopeError: nothing to load there, or a model class that is not supported.
    """
    check_settings(Path(model_path))
    config = _load(AutoConfig, model_path)
    try:
        check_config(config)
    except ScopeError as error:
        raise ScopeError(f"--model_path {model_path}: {error}") from error
    return config


def load_tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights.

    Raises:
        ScopeError: no tokenizer there, or a broken one.
    """
    folder = Path(model_path)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise ScopeError(
            f"--model_path {model_path}: no tokenizer in the folder, and without one no prompt can "
            f"be counted or read; put the model's own there: one of {', '.join(_TOKENIZER_FILES)}"
        )
    return _load(AutoTokenizer, model_path)


def load_model(
    model_path: str,
    dtype: str,
    device: str,
    attn_implementation: str,
    config: PreTrainedConfig | None = None,
    split: bool = False,
) -> PreTrainedModel:
    """The model in evaluation mode.

    Args:
        model_path: hub id, local folder or .gguf file.
        dtype: name of a torch dtype.
        device: torch device.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.
        config: the model's, where it has been loaded already.
        split: leave this process's part of it.

    Raises:
        ScopeError: nothing to load there, not a supported model, weights that are not those of the
            configuration, no such device or no room on it, or no flash-attn installed.
    """
    check_device(device)
    check_loadable(model_path, attn_implementation)
    config = deepcopy(config or load_config(model_path))  # a part of a model changes its own
    try:
        model, found = _load(
            AutoModelForCausalLM,
            model_path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            ignore_mismatched_sizes=True,  # they are told below, with their names
            output_loading_info=True,
        )
        _check_tensors(model_path, model, found)
        if split:
            split_over_ranks(model)
        return model.to(device).eval()
    except torch.OutOfMemoryError:
        raise ScopeError(
            f"--model_path {model_path}: its weights do not fit in the memory of {device}; use a "
            "--dtype of 16 bits or another --device"
        ) from None


def check_loadable(model_path: str, attn_implementation: str) -> None:
    """What can be told of `load_model` before the weights are read.

    Raises:
        ScopeError: damaged weights, or no flash-attn installed.
    """
    flash_attn_missing = importlib.util.find_spec("flash_attn") is None
    if attn_implementation == "flash_attention_2" and flash_attn_missing:
        raise ScopeError(
            "--attn_implementation flash_attention_2 needs the flash-attn package; install it with "
            "pip install flash-attn, or use sdpa"
        )
    check_weights(Path(model_path))


def eos_token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str
) -> set[int]:
    """Tokens that end a text.

    Args:
        model: the loaded model.
        tokenizer: its tokenizer.
        source: ``tokenizer`` for its one end-of-text token; ``model`` for all that the model's
            generation config names, if it names any.
    """
    named = model.generation_config.eos_token_id if source == "model" else None
    ids = tokenizer.eos_token_id if named is None else named
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _load(auto_class: Any, model_path: str, **kwargs: Any) -> Any:
    path = Path(model_path)
    folder = model_path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ScopeError(f"--model_path {model_path}: no such file")
        kwargs["gguf_file"] = path.name
        folder = str(path.parent)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of tensors; ours is one line
    try:
        with without_bars():
            return auto_class.from_pretrained(folder, trust_remote_code=False, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, it comes of what lies there
        raise ScopeError(
            f"--model_path {model_path}: cannot be loaded {_reason(auto_class, path, error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _reason(auto_class: Any, path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if "trust_remote_code" in str(error):
        return (
            "without running code that comes with it, which is never done (trust_remote_code is "
            "false); use a model that transformers has itself"
        )
    if auto_class is AutoTokenizer and path.is_dir():
        files = [name for name in _TOKENIZER_FILES if (path / name).exists()]
        return f"with the tokenizer of {', '.join(files)} ({text}); download it again"
    pickled = _some([file.name for file in path.glob("*.bin")]) if path.is_dir() else ""
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"from {pickled}: damaged, or more than tensors, and code in pickled files is never "
            "run; use weights in safetensors files"
        )
    if auto_class is AutoModelForCausalLM and pickled:
        return f"from {pickled} ({text}); download it again"
    return f"as a hub id, local folder or .gguf file ({text})"


def _check_tensors(model_path: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Refuse weights that transformers has made up or left out; tied ones are neither."""
    unexpected = set(found["unexpected_keys"])
    if model_path.endswith(".gguf"):
        unexpected |= _unread_gguf_tensors(Path(model_path), model)
    shapes = [
        f"{name} {list(theirs)} instead of {list(ours)}"
        for name, theirs, ours in found["mismatched_keys"]
    ]
    wrong = {
        "missing": found["missing_keys"],
        "not in the configuration": unexpected,
        "of another shape": shapes,
    }
    told = [f"{len(names)} {what}: {_some(names)}" for what, names in wrong.items() if names]
    if told:
        raise ScopeError(
            f"--model_path {model_path}: the weights are not those of its configuration ("
            f"{'; '.join(told)}); use the configuration and all weight files of one model"
        )


def _unread_gguf_tensors(path: Path, model: PreTrainedModel) -> set[str]:
    """Tensors of a .gguf file that have no place in the model; transformers skips them silently."""
    with path.open("rb") as file:
        tensors = int.from_bytes(file.read(16)[8:], "little")
    if tensors == len(list(model.parameters())):
        return set()  # none is missing, so all were read; listing their names takes seconds
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    known = get_gguf_hf_weights_map(model, TensorProcessor(config=model.config.to_dict()))
    names = {tensor.name for tensor in GGUFReader(path).tensors} - known.keys()
    # The first are computed from the configuration, the second are split as they are read.
    return {name for name in names if not name.startswith("rope_") and "_exps." not in name}


def _some(names: Collection[str]) -> str:
    """The first three names."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} ..."
