"""Every method by the name that the original's command line gives it, in any case."""

from collections.abc import Mapping
from typing import TypeVar

from baselines.allkv import ALLKV
from baselines.h2o import H2O, H2ODecoding
from baselines.pyramidinfer import PyramidInfer, PyramidInferDecoding
from baselines.pyramidkv import PyramidKV
from baselines.snapkv import SnapKV
from baselines.streamingllm import StreamingLLM, StreamingLLMDecoding
from scope.decoding.adaptive import Adaptive
from scope.decoding.discontinuous import Discontinuous
from scope.decoding.none import NoEviction
from scope.decoding.slide import Slide
from scope.errors import ScopeError
from scope.methods.decoding import DecodingStrategy
from scope.methods.prefill import PrefillCompressor

_Method = TypeVar("_Method")

PREFILL_COMPRESSORS: Mapping[str, type[PrefillCompressor]] = {
    cls.name: cls for cls in (ALLKV, SnapKV, PyramidKV, PyramidInfer, H2O, StreamingLLM)
}
DECODING_STRATEGIES: Mapping[str, type[DecodingStrategy]] = {
    cls.name: cls
    for cls in (
        NoEviction,
        Slide,
        Adaptive,
        Discontinuous,
        H2ODecoding,
        StreamingLLMDecoding,
        PyramidInferDecoding,
    )
}


def find(methods: Mapping[str, _Method], name: str, kind: str) -> _Method:
    """Look a method up, ignoring case.

    Raises:
        ScopeError: for an unknown name, with the known ones.
    """
    for known, method in methods.items():
        if known.lower() == name.lower():
            return method
    raise ScopeError(f"unknown {kind} {name!r}; expected one of {', '.join(methods)}")
