"""Every method by its name: the one place that a new file is entered in."""

from collections.abc import Mapping
from typing import Any, TypeVar

from baselines.allkv import ALLKV
from baselines.h2o import H2O, H2ODecoding
from baselines.kvcompress import KVCompress
from baselines.kvmerger import KVMerger
from baselines.lococo import LoCoCo, LoCoCoDecoding
from baselines.pyramidinfer import PyramidInfer, PyramidInferDecoding
from baselines.pyramidkv import PyramidKV
from baselines.snapkv import SnapKV
from baselines.streamingllm import StreamingLLM, StreamingLLMDecoding
from baselines.zigzagkv import ZigZagKV
from scope.budgets.blocks import Blocks
from scope.budgets.pyramid import Pyramid
from scope.budgets.uniform import Uniform
from scope.budgets.whole import Whole
from scope.budgets.zigzag import ZigZag
from scope.decoding.adaptive import Adaptive
from scope.decoding.discontinuous import Discontinuous
from scope.decoding.none import NoEviction
from scope.decoding.periodic import Periodic
from scope.decoding.refreshkv import RefreshKV
from scope.decoding.rpc import RPC
from scope.decoding.slide import Slide
from scope.errors import ScopeError
from scope.methods.budget import Budget
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.heads import Heads
from scope.methods.options import Option, options_of
from scope.methods.score import Score
from scope.methods.sharing import Sharing
from scope.methods.storage import Storage
from scope.methods.strategy import Strategy
from scope.scores.cumulative import Cumulative
from scope.scores.cumulative_value_norm import CumulativeValueNorm
from scope.scores.current import Current
from scope.scores.decayed import Decayed
from scope.scores.expected import Expected
from scope.scores.fresh_random import FreshRandom
from scope.scores.last_attended import LastAttended
from scope.scores.max_decay import MaxDecay
from scope.scores.morphkv import MorphKV
from scope.scores.random import Random
from scope.scores.recent import Recent
from scope.scores.recurrence import Recurrence
from scope.scores.rkv import RKV
from scope.scores.rpc import RPCScore
from scope.scores.snapkv_decode import SnapKVDecode
from scope.scores.triattention import TriAttention
from scope.scores.value_norm import ValueNorm
from scope.scores.value_range import ValueRange

_Method = TypeVar("_Method")
_Kind = type[Compressor] | type[Budget] | type[Strategy] | type[Score]

COMPRESSORS: Mapping[str, type[Compressor]] = {
    cls.name: cls
    for cls in (
        ALLKV,
        SnapKV,
        PyramidKV,
        ZigZagKV,
        KVCompress,
        H2O,
        PyramidInfer,
        StreamingLLM,
        LoCoCo,
        KVMerger,
    )
}
BUDGETS: Mapping[str, type[Budget]] = {
    cls.name: cls for cls in (Whole, Uniform, Pyramid, ZigZag, Blocks)
}
STRATEGIES: Mapping[str, type[Strategy]] = {
    cls.name: cls
    for cls in (
        NoEviction,
        Slide,
        Adaptive,
        Discontinuous,
        Periodic,
        RPC,
        H2ODecoding,
        StreamingLLMDecoding,
        PyramidInferDecoding,
        RefreshKV,
        LoCoCoDecoding,
    )
}
SCORES: Mapping[str, type[Score]] = {
    cls.name: cls
    for cls in (
        Current,
        Cumulative,
        Decayed,
        MaxDecay,
        ValueNorm,
        CumulativeValueNorm,
        ValueRange,
        Recurrence,
        LastAttended,
        SnapKVDecode,
        MorphKV,
        RKV,
        RPCScore,
        Expected,
        TriAttention,
        FreshRandom,
        Recent,
        Random,
    )
}


def find(methods: Mapping[str, _Method], name: str | _Method, kind: str) -> _Method:
    """Look a method up, ignoring case; a class that is not entered here is its own name.

    Raises:
        ScopeError: for an unknown name, with the known ones.
    """
    if isinstance(name, type):
        return name
    for known, method in methods.items():
        if known.lower() == str(name).lower():
            return method
    raise ScopeError(f"unknown {kind} {name!r}; expected one of {', '.join(methods)}")


def readers_of_options() -> Mapping[str, tuple[Option, list[str]]]:
    """Every option of every method, with the names of the methods that read it.

    Beside a name stands its own default where that is not the option's.
    """
    paper, published = Fidelity(), Fidelity.preset("upstream")
    found: dict[str, tuple[Option, list[str]]] = {}
    methods: list[type[Any]] = [
        *COMPRESSORS.values(),
        *BUDGETS.values(),
        *STRATEGIES.values(),
        *SCORES.values(),
        Storage,
        Heads,
        Sharing,
    ]
    for method in methods:
        faces: list[type] = [method]
        if not issubclass(method, Score | Storage | Heads | Sharing):
            faces = [method.under(paper), method.under(published)]
        for face in faces:
            for name, option in options_of(face).items():
                first, readers = found.setdefault(name, (option, []))
                own = "" if option.default == first.default else f" ({option.default})"
                if method.name + own not in readers:
                    readers.append(method.name + own)
    return found


def _told() -> Mapping[tuple[str, str], Mapping[str, str]]:
    """By kind, and what is said of each of it: all names, and that."""
    kinds: dict[tuple[str, str], Mapping[str, _Kind]] = {
        ("prefill compressor (`method`)", "keeps of the prompt"): COMPRESSORS,
        ("prompt budget (`budget`)", "gives"): BUDGETS,
        ("decoding strategy (`decoding_metric`)", "keeps of the generation"): STRATEGIES,
        ("decoding score (`decoding_score`)", "tokens compete by"): SCORES,
    }
    beside = {**options_of(Storage), **options_of(Heads), **options_of(Sharing)}
    return {
        **{title: {name: one.about for name, one in ours.items()} for title, ours in kinds.items()},
        ("storage, of any methods (options)", "sets"): {n: one.help for n, one in beside.items()},
    }


def overview() -> str:
    """The names of all methods in Markdown, a row a kind: for the README."""
    rows = [f"| {kind} | `{'` `'.join(names)}` |" for (kind, _), names in _told().items()]
    return "\n".join(["| kind | any of |", "| --- | --- |", *rows])


def tables() -> str:
    """What each method does in Markdown, a table a kind: for docs/methods.md."""
    return "\n\n".join(
        "\n".join(
            [f"| {kind} | {says} |", "| --- | --- |"]
            + [f"| `{name}` | {about} |" for name, about in rows.items()]
        )
        for (kind, says), rows in _told().items()
    )


if __name__ == "__main__":
    print(f"{overview()}\n\n{tables()}")
