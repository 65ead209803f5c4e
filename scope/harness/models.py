"""Loading a model, its tokenizer or only its configuration: hub id, folder or .gguf file."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scope.attention.support import check_config
from scope.errors import ScopeError


def load_config(model_path: str) -> PreTrainedConfig:
    """The configuration of a supported model.

    Raises:
        ScopeError: nothing to load there, or a model class that is not supported.
    """
    config = _load(AutoConfig, model_path)
    try:
        check_config(config)
    except ScopeError as error:
        raise ScopeError(f"--model_path {model_path}: {error}") from error
    return config


def load_tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights."""
    return _load(AutoTokenizer, model_path)


def load_model(
    model_path: str, dtype: str, device: str, attn_implementation: str
) -> PreTrainedModel:
    """The model in evaluation mode.

    Args:
        model_path: hub id, local folder or .gguf file.
        dtype: name of a torch dtype.
        device: torch device.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.

    Raises:
        ScopeError: nothing to load there, not a supported model, or no flash-attn installed.
    """
    flash_attn_missing = importlib.util.find_spec("flash_attn") is None
    if attn_implementation == "flash_attention_2" and flash_attn_missing:
        raise ScopeError(
            "--attn_implementation flash_attention_2 needs the flash-attn package; install it with "
            "pip install flash-attn, or use sdpa"
        )
    load_config(model_path)
    model = _load(
        AutoModelForCausalLM,
        model_path,
        dtype=getattr(torch, dtype),
        attn_implementation=attn_implementation,
    )
    return model.to(device).eval()


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
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ScopeError(f"--model_path {model_path}: no such file")
        kwargs["gguf_file"] = path.name
        model_path = str(path.parent)
    try:
        return auto_class.from_pretrained(model_path, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ScopeError(
            f"--model_path {model_path}: cannot be loaded as a hub id, local folder or .gguf file "
            f"({reason[:300]})"
        ) from error
