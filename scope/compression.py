"""One configuration: methods by name, and the options that they read."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from scope.errors import ScopeError
from scope.methods.budget import Budget
from scope.methods.compressor import Compressor
from scope.methods.fidelity import Fidelity
from scope.methods.heads import Heads
from scope.methods.options import Option, options_of
from scope.methods.recipe import Recipe
from scope.methods.score import Score
from scope.methods.sharing import Sharing
from scope.methods.storage import Storage
from scope.methods.strategy import Strategy
from scope.registry import BUDGETS, COMPRESSORS, SCORES, STRATEGIES, find, readers_of_options

# C, W and R: tables have columns for them, and folders their own places.
_SIZES = ("max_capacity_prompt", "decoding_window_size", "decoding_recent_size")

_Method = TypeVar("_Method")


@dataclass(frozen=True)
class Methods:
    """The methods of a configuration, as classes."""

    compressor: type[Compressor]
    budget: type[Budget]
    strategy: type[Strategy]
    score: type[Score] | None

    @classmethod
    def named(
        cls,
        method: str | type[Compressor],
        decoding_metric: str | type[Strategy] | None,
        fidelity: Fidelity,
        budget: str | type[Budget] | None = None,
        decoding_score: str | type[Score] | None = None,
    ) -> "Methods":
        """Find methods by their names; None leaves budget and score to the other two.

        Raises:
            ScopeError: for an unknown name, or where there is nothing to choose.
        """
        compressor = find(COMPRESSORS, method, "method").under(fidelity)
        strategy = find(STRATEGIES, decoding_metric or "None", "decoding_metric").under(fidelity)
        own_budget, score = compressor.budget, strategy.score
        if budget is not None:
            found = find(BUDGETS, budget, "budget")
            if found.name != own_budget.name:  # the compressor's own may be a kind of its own
                own_budget = found
            if own_budget is found and not compressor.takes_budget:
                raise ScopeError(f"budget is not an option of {compressor.name}; leave it out")
        if decoding_score is not None:
            score = find(SCORES, decoding_score, "decoding_score")
            if not strategy.takes_score:
                raise ScopeError(
                    f"decoding_score is not an option of {strategy.name}; leave it out"
                )
        if strategy.takes_score and score is None:
            raise ScopeError(
                f"the strategy {strategy.name} names no score of its own; say with decoding_score "
                f"what tokens compete by, one of {', '.join(SCORES)}"
            )
        return cls(compressor, own_budget.under(fidelity), strategy, score)

    @property
    def reads(self) -> Mapping[str, Option]:
        """Every option that some of them read, by name."""
        parts = (self.compressor, self.budget, self.strategy, self.score, Storage, Heads, Sharing)
        return {
            name: one
            for part in parts
            if part is not None
            for name, one in options_of(part).items()
        }


@dataclass(frozen=True, init=False)
class Compression:
    """What to keep of the prompt and what of the generation.

    Any compressor goes with any strategy, and any budget and score with either. What else can be
    set are the options of the chosen methods.

    Args:
        method: prefill compressor; see `scope.registry.COMPRESSORS`. This and the next three also
            take a class of your own.
        decoding_metric: decoding strategy; see `scope.registry.STRATEGIES`.
        budget: how much each layer keeps of the prompt, where not the compressor's own choice.
        decoding_score: what tokens compete by, where not the strategy's own choice.
        fidelity: which of the differences between paper and published code to follow, or the name
            of a preset.
        options: ``max_capacity_prompt=2048`` and so on.

    Attributes:
        methods: the chosen methods.
        options: every option that they read, with its value.
        given: those that were not left open.

    Raises:
        ScopeError: for an unknown name, an option that no chosen method reads, or an impossible
            budget.
    """

    methods: Methods
    fidelity: Fidelity
    options: dict[str, Any] = field(hash=False)
    given: Mapping[str, Any] = field(hash=False, compare=False, repr=False)

    def __init__(
        self,
        method: str | type[Compressor] = "ALLKV",
        decoding_metric: str | type[Strategy] | None = "None",
        *,
        budget: str | type[Budget] | None = None,
        decoding_score: str | type[Score] | None = None,
        fidelity: Fidelity | str = "paper",
        **options: Any,
    ) -> None:
        if isinstance(fidelity, str):
            fidelity = Fidelity.preset(fidelity)
        methods = Methods.named(method, decoding_metric, fidelity, budget, decoding_score)
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "methods", methods)
        set_field(self, "fidelity", fidelity)
        unread = [name for name in options if name not in methods.reads]
        if unread:
            raise ScopeError(
                f"{unread[0]} is not an option of {self.method}+{self.decoding_metric}, which "
                f"read{'' if methods.reads else 's'} "
                f"{', '.join(methods.reads) or 'none'}; leave it out"
            )
        set_field(
            self,
            "given",
            {name: methods.reads[name].check(value) for name, value in options.items()},
        )
        recipe = self.recipe(max_new_tokens=1)
        # A method finds some of its defaults itself.
        set_field(self, "options", {})
        heads = recipe.heads if recipe.heads.share_heads else None
        sharing = recipe.sharing if recipe.sharing.sources else None
        methods_of = (recipe.compressor, recipe.budget, recipe.strategy, recipe.score)
        for part in (*methods_of, heads, sharing):
            for name in _option_names(part):
                self.options[name] = getattr(part, name)
        self.options.update(recipe.storage.told)

    @classmethod
    def from_shared(
        cls,
        method: str | type[Compressor] = "ALLKV",
        decoding_metric: str | type[Strategy] | None = "None",
        *,
        fidelity: Fidelity | str = "paper",
        must_read: Collection[str] = (),
        **settings: Any,
    ) -> "Compression":
        """With settings that several configurations share: those it does not read are dropped.

        Args:
            method, decoding_metric, fidelity: as in `Compression`.
            must_read: names of settings that are not to be dropped.
            settings: all others.
        """
        if isinstance(fidelity, str):
            fidelity = Fidelity.preset(fidelity)
        strategy = find(STRATEGIES, decoding_metric or "None", "decoding_metric")
        takes = {
            "budget": find(COMPRESSORS, method, "method").takes_budget,
            "decoding_score": strategy.takes_score,
        }
        choices = {
            name: settings[name]
            for name, taken in takes.items()
            if name in settings and (taken or name in must_read)
        }
        reads = Methods.named(method, decoding_metric, fidelity=fidelity, **choices).reads
        known = readers_of_options().keys() | reads.keys() | takes.keys()
        options = {
            name: value
            for name, value in settings.items()
            if name not in takes and (name in reads or name in must_read or name not in known)
        }
        return cls(method, decoding_metric, fidelity=fidelity, **choices, **options)

    @property
    def method(self) -> str:
        return self.methods.compressor.name

    @property
    def decoding_metric(self) -> str:
        return self.methods.strategy.name

    @property
    def budget(self) -> str:
        return self.methods.budget.name

    @property
    def decoding_score(self) -> str | None:
        return None if self.methods.score is None else self.methods.score.name

    @property
    def changed_options(self) -> Mapping[str, Any]:
        """Options that differ from their defaults, but for C, W and R."""
        return {
            name: value
            for name, value in self.options.items()
            if value != self.methods.reads[name].default and name not in _SIZES
        }

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that options name, by option.

        Raises:
            ScopeError: where one is not there.
        """
        found = {}
        for name, value in self.options.items():
            option = self.methods.reads[name]
            if option.file is None or value is None:
                continue
            found[name] = option.file(value)
            if not found[name].is_file():
                raise ScopeError(f"{name} {value}: no such file; expected is the {option.help}")
        return found

    @property
    def label(self) -> str:
        """What a table calls it: names, and every choice and option that is not the default."""
        notes = []
        if self.budget != self.methods.compressor.budget.name:
            notes.append(self.budget)
        if self.methods.strategy.takes_score:
            notes.append(str(self.decoding_score))
        notes += [f"{name} {value}" for name, value in self.changed_options.items()]
        if self.fidelity == Fidelity.preset("upstream"):
            notes.append("upstream")
        else:
            switches = dataclasses.asdict(self.fidelity).items()
            paper = dataclasses.asdict(Fidelity())
            notes += [f"{name} {value}" for name, value in switches if value != paper[name]]
        name = f"{self.method}+{self.decoding_metric}"
        return f"{name} ({', '.join(notes)})" if notes else name

    def settings(self) -> dict[str, Any]:
        """All of it in plain values, options on top level."""
        return {
            "method": self.method,
            "decoding_metric": self.decoding_metric,
            "budget": self.budget,
            "decoding_score": self.decoding_score,
            **self.options,
            "fidelity": dataclasses.asdict(self.fidelity),
        }

    def recipe(self, max_new_tokens: int) -> Recipe:
        """The methods themselves, for generations of up to T tokens."""
        methods = self.methods
        settings = {**self.given, "max_new_tokens": max_new_tokens}
        if self.fidelity.fixed_plug_in_delta and settings.get("delta") is None:
            settings["delta"] = methods.compressor.published_delta
        return Recipe(
            _build(methods.compressor, settings),
            _build(methods.budget, settings),
            _build(methods.strategy, settings),
            None if methods.score is None else _build(methods.score, settings),
            cached_heads=self.fidelity.cached_heads,
            score_dtype=self.fidelity.score_dtype,
            frozen_prefix=self.fidelity.frozen_prefix,
            storage=_build(Storage, settings),
            heads=_build(Heads, settings),
            sharing=_build(Sharing, settings),
        )


def _build(method: type[_Method], settings: Mapping[str, Any]) -> _Method:
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    return method(**{one.name: settings[one.name] for one in fields if one.name in settings})


def _option_names(part: object) -> list[str]:
    return [] if part is None else list(options_of(type(part)))
