"""What a cache is made by: methods with their settings, and the choices between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from transformers import PreTrainedConfig

from scope.errors import ScopeError
from scope.methods.budget import Budget
from scope.methods.compressor import Compressor
from scope.methods.heads import Heads
from scope.methods.rope import head_dim_of
from scope.methods.score import Score, Shape
from scope.methods.sharing import Sharing
from scope.methods.storage import Storage
from scope.methods.strategy import Strategy

# Sizes of a `Shape` that are the model's or the cache's.
_GIVEN_SIZES = ("H", "H_q", "S", "D", "D/2")


@dataclass(frozen=True)
class Recipe:
    """Everything a cache must know of a configuration, for generations of up to T tokens.

    Attributes:
        compressor: chooses what stays of a prompt.
        budget: says how much.
        strategy: says how much of the generation stays.
        score: says which of its tokens; None where none ever leaves.
        cached_heads: ``kv``, or ``query`` to repeat keys and values so that every query head has a
            cache of its own.
        score_dtype: ``float32``, or ``model`` to round probabilities and sums to the model's dtype
            before tokens are ranked.
        frozen_prefix: what a decode pool comes on top of: the kept ``prompt``, or the first C
            entries of the cache (``capacity``) in the order in which they were chosen.
        storage: how the prompt pool is stored.
        heads: whether the heads of a layer choose together.
        sharing: which layers have no slots of their own.
    """

    compressor: Compressor
    budget: Budget
    strategy: Strategy
    score: Score | None
    cached_heads: Literal["kv", "query"] = "kv"
    score_dtype: Literal["float32", "model"] = "float32"
    frozen_prefix: Literal["prompt", "capacity"] = "prompt"
    storage: Storage = field(default_factory=Storage)
    heads: Heads = field(default_factory=Heads)
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        self.compressor.check(self.budget)
        self.storage.check(self.compressor, self.strategy, self.score, self.frozen_prefix)
        if self.score is not None and self.strategy.working_set is not None:
            raise ScopeError(
                f"the strategy {self.strategy.name} has a working set and a score by which tokens "
                "leave; slots are read in part only where all stay"
            )
        if self.sharing.sources and self.strategy.working_set is not None:
            raise ScopeError(
                "share_layers goes with strategies that read all that is held, and "
                f"{self.strategy.name} reads a working set, which belongs to one layer; leave "
                "share_layers out"
            )
        if self.sharing.sources and self.storage.merged_layers is not None:
            raise ScopeError("share_layers and merged_layers do not go together; give one")
        self._check_equal_tokens()

    def owners(self, config: PreTrainedConfig) -> list[int]:
        """The layers of a model that have slots.

        Raises:
            ScopeError: where these methods do not go with this model.
        """
        owners = self.sharing.owners(config)
        self.storage.check_layers(len(owners))
        self.storage.check_head(head_dim_of(config))
        self.compressor.check_model(config)
        self.strategy.check_model(config)
        return owners

    @property
    def follows_shares(self) -> bool:
        """Whether every generated token is on top of what a layer keeps of the prompt."""
        return self.frozen_prefix == "prompt" and not self._cuts_layers

    @property
    def _cuts_layers(self) -> bool:
        return type(self.strategy).unified_budgets is not Strategy.unified_budgets

    def check_unequal_heads(self) -> None:
        """Refuse what would take more from heads that keep less than they have.

        Raises:
            ScopeError: with what would do.
        """
        if self.follows_shares:
            return
        reason, instead = "frozen_prefix capacity takes them for equal", "fidelity paper"
        if self._cuts_layers:
            reason = f"{self.strategy.name} cuts a layer to a length of its own"
            instead = "another decoding_metric, with fidelity paper"
        raise ScopeError(
            f"the budget {self.budget.name} gives heads of a layer unequal numbers of tokens, and "
            f"{reason}; take {instead}"
        )

    def _check_equal_tokens(self) -> None:
        """Refuse what needs equal tokens in several heads or layers, where they surely differ."""
        share, choice = self.budget.own_share, self.compressor.own_choice
        if self.budget.capacity is None:  # prompts may never be cut
            choice = None
        by_share, by_choice = f"the budget {self.budget.name}", self.compressor.name
        heads = by_choice if choice == "head" or (choice and not self.heads.share_heads) else None
        if share == "head":
            self.check_unequal_heads()
            heads = by_share
        layers = heads or (by_share if share else by_choice if choice else None)
        if self.heads.share_heads and heads:
            raise ScopeError(
                f"share_heads is true, and {heads} keeps other tokens in each head; take another, "
                "or leave share_heads out"
            )
        can_agree = heads == by_choice and choice == "layer"
        instead = "give share_heads true" if can_agree else "take another"
        if self.storage.low_rank is not None and heads:
            raise ScopeError(
                f"low_rank holds a token for all heads of a layer, and {heads} keeps other ones in "
                f"each; {instead}"
            )
        if self.score is not None and self.score.of_all_heads and self.strategy.unified and heads:
            raise ScopeError(
                f"the score {self.score.name} ranks the tokens of all heads at once, and {heads} "
                f"keeps other ones in each, which {self.strategy.name} lets compete; {instead}, or "
                "take a strategy with a pool for the generation, as slide"
            )
        if self.storage.merged_layers is not None and layers:
            raise ScopeError(
                f"merged_layers holds a token for two layers, and {layers} keeps other ones in "
                "each; take ALLKV, or StreamingLLM with the same budget in all layers"
            )

    @property
    def state(self) -> Mapping[str, Shape]:
        """What score and strategy remember, in sizes that no option names any more.

        Raises:
            ScopeError: where both use one name.
        """
        of_strategy, of_score = _state(self.strategy), _state(self.score)
        both = of_strategy.keys() & of_score.keys()
        if both:
            raise ScopeError(f"score and strategy both have a state named {min(both)}; rename one")
        return {**of_strategy, **of_score}


def _state(method: Strategy | Score | None) -> Mapping[str, Shape]:
    return {
        name: tuple(
            size if isinstance(size, int) or size in _GIVEN_SIZES else getattr(method, size)
            for size in shape
        )
        for name, shape in (method.state if method else {}).items()
    }


class Configuration(Protocol):
    """Whatever makes recipes; `scope.Compression` does, by the names of methods."""

    def recipe(self, max_new_tokens: int) -> Recipe:
        """The recipe for generations of up to T tokens."""
