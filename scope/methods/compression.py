"""One configuration: a prefill compressor, a decoding strategy and their budgets."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from baselines.streamingllm import NUM_SINKS
from scope.errors import ScopeError
from scope.methods.decoding import DecodingStrategy, Score
from scope.methods.fidelity import Fidelity
from scope.methods.prefill import PrefillCompressor
from scope.methods.prompt import GroupReduction
from scope.methods.registry import DECODING_STRATEGIES, PREFILL_COMPRESSORS, find

# The published code's delta for the two compressors that its runner forgets to hand it to.
_PLUG_IN_DELTA = 15

_Method = TypeVar("_Method")


@dataclass(frozen=True)
class Compression:
    """What to keep of the prompt and what of the generation.

    Any compressor goes with any strategy. Settings a method does not read are ignored by it.

    Attributes:
        method: prefill compressor: ALLKV, SnapKV, PyramidKV, PyramidInfer, H2O or StreamingLLM.
        decoding_metric: decoding strategy: None, slide, adaptive, discontinuous, or over one
            budget for prompt and generation h2o, slm, pyramidinfer.
        max_capacity_prompt: C, prompt tokens kept per layer and head.
        window_size: w, last prompt tokens always kept; 8 if None.
        decoding_window_size: W, generated tokens kept.
        decoding_recent_size: R, most recent tokens, never evicted.
        kernel_size: pooling width of SnapKV's and PyramidKV's scores, odd.
        pooling: ``maxpool`` or ``avgpool``.
        decoding_score: what tokens compete by in decoding: ``current``, this step's attention;
            ``cumulative``, attention summed since the token came; as controls ``recent``, the
            newer stays, and ``random``, a uniform choice. None for the strategy's own (current;
            cumulative for h2o). ``slm`` has no other than recent.
        group_reduction: how the scores of the query heads of a KV head become one.
        delta: steps per token of growth for the published code's adaptive window and clock;
            None for (T - R) // (W - R).
        fidelity: which of the differences between paper and published code to follow.

    Raises:
        ScopeError: for an unknown name or an impossible budget.
    """

    method: str = "ALLKV"
    decoding_metric: str = "None"
    max_capacity_prompt: int = 2048
    window_size: int | None = None
    decoding_window_size: int = 512
    decoding_recent_size: int = 256
    kernel_size: int = 7
    pooling: Literal["maxpool", "avgpool"] = "maxpool"
    decoding_score: Score | None = None
    group_reduction: GroupReduction = "mean"
    delta: int | None = None
    fidelity: Fidelity = field(default_factory=Fidelity)

    def __post_init__(self) -> None:
        method = find(PREFILL_COMPRESSORS, self.method, "method")
        strategy = find(DECODING_STRATEGIES, str(self.decoding_metric), "decoding_metric")
        set_field = object.__setattr__  # the dataclass is frozen; names get their usual spelling
        set_field(self, "method", method.name)
        set_field(self, "decoding_metric", strategy.name)
        if self.window_size is None:
            halves = self.method == "StreamingLLM" and self.fidelity.streamingllm_sinks == "half"
            set_field(self, "window_size", self.max_capacity_prompt // 2 if halves else 8)
        self._check()

    def _check(self) -> None:
        if self.decoding_recent_size < 1:
            raise ScopeError(
                f"decoding_recent_size is {self.decoding_recent_size}; it must be >= 1"
            )
        if self.decoding_recent_size >= self.decoding_window_size:
            raise ScopeError(
                f"decoding_recent_size {self.decoding_recent_size} leaves no room in "
                f"decoding_window_size {self.decoding_window_size}; it must be smaller"
            )
        if self.window_size < 1:
            raise ScopeError(f"window_size is {self.window_size}; it must be at least 1")
        if self.method != "ALLKV" and self.window_size >= self.max_capacity_prompt:
            raise ScopeError(
                f"window_size {self.window_size} leaves no room in max_capacity_prompt "
                f"{self.max_capacity_prompt}; it must be smaller"
            )
        sinks = self.method == "StreamingLLM" and self.fidelity.streamingllm_sinks == "4"
        if sinks and self.max_capacity_prompt <= NUM_SINKS:
            raise ScopeError(
                f"max_capacity_prompt {self.max_capacity_prompt} leaves StreamingLLM no room "
                f"beside its {NUM_SINKS} sinks; it must be larger"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ScopeError(f"kernel_size is {self.kernel_size}; it must be odd and positive")
        for name, allowed in {
            "pooling": ("maxpool", "avgpool"),
            "group_reduction": ("mean", "max"),
            "decoding_score": (*get_args(Score), None),
        }.items():
            if getattr(self, name) not in allowed:
                raise ScopeError(
                    f"{name} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(str(value) for value in allowed)}"
                )

    @property
    def compressor(self) -> PrefillCompressor:
        """The prefill compressor, with the settings it reads."""
        return self._build(PREFILL_COMPRESSORS[self.method])

    def strategy(self, max_new_tokens: int) -> DecodingStrategy:
        """The decoding strategy for generations of up to T = ``max_new_tokens``."""
        delta = (max_new_tokens - self.decoding_recent_size) // (
            self.decoding_window_size - self.decoding_recent_size
        )
        if self.fidelity.fixed_plug_in_delta and self.method in ("SnapKV", "PyramidKV"):
            delta = _PLUG_IN_DELTA
        if self.delta is not None:
            delta = self.delta
        return self._build(
            DECODING_STRATEGIES[self.decoding_metric],
            max_new_tokens=max_new_tokens,
            delta=max(delta, 1),
        )

    def score(self, strategy: DecodingStrategy) -> Score:
        """What decides between tokens in decoding."""
        if self.decoding_score is None or strategy.ranks_by == "recent":
            return strategy.ranks_by
        return self.decoding_score

    def _build(self, cls: type[_Method], **derived: int) -> _Method:
        """A method's fields name the settings it reads: its own, or switches of `Fidelity`."""
        settings: dict[str, Any] = {**vars(self.fidelity), **vars(self), **derived}
        return cls(**{setting.name: settings[setting.name] for setting in fields(cls)})
