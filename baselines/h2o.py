"""H2O: heavy hitters, the tokens that have received most attention so far."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope.budgets.uniform import Uniform
from scope.kernels.tensors import GroupReduction
from scope.methods.budget import Budget, Part
from scope.methods.compressor import Compressor, ScoredCompressor
from scope.methods.fidelity import Fidelity
from scope.methods.options import option
from scope.methods.prompt import Prompt
from scope.methods.score import Score
from scope.methods.strategy import RecentWindow, Strategy
from scope.scores.cumulative import Cumulative
from scope.scores.current import Current


@dataclass(frozen=True)
class H2O(ScoredCompressor):
    """Scores the prompt by the attention that each token receives from all queries.

    H2O, arXiv 2306.14048, section 4: column sums of the causal attention matrix.
    """

    name: ClassVar[str] = "H2O"
    about: ClassVar[str] = "what all queries attend to (causal column sums)"
    budget: ClassVar[type[Budget]] = Uniform
    own_choice: ClassVar[Part | None] = "layer"
    causal: ClassVar[bool] = True
    headwise: ClassVar[bool] = True

    group_reduction: GroupReduction = option(
        "mean", "how the attention of the query heads of a KV head becomes one number"
    )

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Compressor]:
        return cls if fidelity.causal_prefill_scores else PublishedH2O

    def score(self, prompt: Prompt) -> Tensor:
        first_causal_row = 0 if self.causal else prompt.length - self.window_size
        return prompt.received(reduction=self.group_reduction, first_causal_row=first_causal_row)


@dataclass(frozen=True)
class PublishedH2O(H2O):
    """As the published SCOPE code has it: queries before the window also look at later tokens."""

    causal: ClassVar[bool] = False


@dataclass(frozen=True)
class H2ODecoding(RecentWindow):
    """One budget of C + W over prompt and generation: the last R, and the heaviest of the others.

    The paper's score is attention summed over all queries since the token came, those of the prompt
    included.
    """

    name: ClassVar[str] = "h2o"
    about: ClassVar[str] = "baseline: one budget C + W for prompt and generation, heaviest stay"
    unified: ClassVar[bool] = True
    score: ClassVar[type[Score] | None] = Cumulative

    @classmethod
    def under(cls, fidelity: Fidelity) -> type[Strategy]:
        return PublishedH2ODecoding if fidelity.h2o_decoding_score == "current" else cls


@dataclass(frozen=True)
class PublishedH2ODecoding(H2ODecoding):
    """As the published SCOPE code has it: by the last query's attention alone."""

    score: ClassVar[type[Score] | None] = Current
