"""The named differences between the SCOPE paper and its published code.

Every field names one decision; the method or cache that takes the decision reads the field, so one
implementation serves both. State that leaked from one example into the next, and crashes, are not
reproduced (the README lists them).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from scope.errors import ScopeError


@dataclass(frozen=True)
class Fidelity:
    """How closely to follow the paper or the published code. The defaults are the paper.

    Attributes:
        cached_heads: ``kv`` caches and evicts per KV head, with scores reduced over the query heads
            of its group; ``query`` repeats K and V first, so every query head has its own cache.
        causal_prefill_scores: H2O and PyramidInfer sum attention columns under the causal mask; if
            false, only the last ``window_size`` rows are masked.
        score_dtype: ``float32``, or ``model``: probabilities and their sums are rounded to the
            model's dtype before tokens are ranked.
        pyramid_at_every_length: PyramidKV and PyramidInfer spread their budget over the layers for
            every prompt longer than C and the budgets sum to layers × C; if false, only for prompts
            of at least 2(C - w) tokens, with the published code's rounding.
        pyramidinfer_extra_window: PyramidInfer keeps C + w tokens where it does not spread.
        streamingllm_sinks: ``4`` first tokens stay, or ``half``: the prompt's window is C // 2, and
            its first C - C // 2 tokens and then the first W - R generated ones stay for ever.
        frozen_prefix: what SCOPE never evicts: the kept ``prompt``, or the first C entries of the
            cache (``capacity``) in the order in which the compressor returned them.
        adaptive_window: ``capped``: R + (t-R)(W-R)/(T-R) from t > R, never above W;
            ``uncapped``: R + (t-1)//delta.
        discontinuous_clock: ``growth``: a selection whenever the adaptive window has grown by one
            token; ``counters``: after ``delta`` skipped steps, counted over all layers together.
        fixed_plug_in_delta: SnapKV and PyramidKV run with delta 15 whatever W and T are.
        h2o_decoding_score: what unified H2O ranks tokens by, unless ``decoding_score`` says
            otherwise: attention summed since the token came, or the current query's alone.
        pyramidinfer_decoding: ``pyramid``: layer budgets that sum to layers × (C + W);
            ``threshold``: C + W everywhere, until a layer holds 2(C - R) + W tokens.
    """

    cached_heads: Literal["kv", "query"] = "kv"
    causal_prefill_scores: bool = True
    score_dtype: Literal["float32", "model"] = "float32"
    pyramid_at_every_length: bool = True
    pyramidinfer_extra_window: bool = False
    streamingllm_sinks: Literal["4", "half"] = "4"
    frozen_prefix: Literal["prompt", "capacity"] = "prompt"
    adaptive_window: Literal["capped", "uncapped"] = "capped"
    discontinuous_clock: Literal["growth", "counters"] = "growth"
    fixed_plug_in_delta: bool = False
    h2o_decoding_score: Literal["cumulative", "current"] = "cumulative"
    pyramidinfer_decoding: Literal["pyramid", "threshold"] = "pyramid"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), choices_of(field.name)
            if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
                raise ScopeError(
                    f"fidelity.{field.name} is {value!r}; expected one of "
                    f"{', '.join(str(choice) for choice in allowed)}"
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """``paper`` or ``upstream``, with single switches overridden.

        Override values may be strings, as they come from a command line.
        """
        presets = {"paper": cls(), "upstream": cls(**_UPSTREAM)}
        if name.lower() not in presets:
            raise ScopeError(f"unknown fidelity preset {name!r}; expected paper or upstream")
        unknown = overrides.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ScopeError(
                f"unknown fidelity switch {sorted(unknown)[0]!r}; expected one of "
                f"{', '.join(field.name for field in fields(cls))}"
            )
        return replace(presets[name.lower()], **{k: _parse(k, v) for k, v in overrides.items()})


_UPSTREAM: dict[str, Any] = {
    "cached_heads": "query",
    "causal_prefill_scores": False,
    "score_dtype": "model",
    "pyramid_at_every_length": False,
    "pyramidinfer_extra_window": True,
    "streamingllm_sinks": "half",
    "frozen_prefix": "capacity",
    "adaptive_window": "uncapped",
    "discontinuous_clock": "counters",
    "fixed_plug_in_delta": True,
    "h2o_decoding_score": "current",
    "pyramidinfer_decoding": "threshold",
}


def choices_of(name: str) -> tuple[Any, ...]:
    """What a switch may be."""
    annotation = Fidelity.__annotations__[name]
    return (True, False) if annotation is bool else get_args(annotation)


def _parse(name: str, value: Any) -> Any:
    if isinstance(choices_of(name)[0], bool) and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    return str(value) if not isinstance(value, bool) else value
