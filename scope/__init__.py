"""SCOPE reproduction harness: KV-cache compression for long generation.

Example:
    >>> from scope import Compression, SlotCache, patch
    >>> compression = Compression("SnapKV", "slide", max_capacity_prompt=2048)
    >>> with patch(model):
    ...     cache = SlotCache(model.config, compression, max_new_tokens=4096)
    ...     tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=4096)
"""

from scope.attention.patch import patch
from scope.cache.cache import SlotCache
from scope.errors import ScopeError
from scope.methods.compression import Compression
from scope.methods.fidelity import Fidelity

__all__ = ["Compression", "Fidelity", "ScopeError", "SlotCache", "patch"]
