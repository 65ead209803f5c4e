"""SCOPE reproduction harness: KV-cache compression for long generation.

Example:
    >>> from scope import Compression, SlotCache, patch
    >>> compression = Compression("SnapKV", "slide", max_capacity_prompt=2048)
    >>> with patch(model):
    ...     cache = SlotCache(model.config, compression, max_new_tokens=4096)
    ...     tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=4096)
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Compression": "scope.compression",
    "Fidelity": "scope.methods.fidelity",
    "ScopeError": "scope.errors",
    "SlotCache": "scope.cache.cache",
    "patch": "scope.attention.patch",
}

__all__ = ["Compression", "Fidelity", "ScopeError", "SlotCache", "patch"]


def __getattr__(name: str) -> Any:
    """Import on first use: scoring and building data need neither torch nor transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
