"""The Triton kernels do what the plain torch step does: same output, same survivors, same slots."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from baselines.allkv import ALLKV
from scope.budgets.whole import Whole
from scope.cache.layer import SlotLayer, per_slot
from scope.cache.step import decode, look
from scope.decoding.none import NoEviction
from scope.kernels import reference
from scope.kernels.tensors import FREE, NewTokens, Sight, SlotTensors, StepCounts
from scope.methods.prompt import Entries
from scope.methods.recipe import Recipe
from scope.methods.score import Score
from scope.registry import SCORES

pytest.importorskip("triton", reason="the kernels need Triton, which torch's CUDA builds bring")

from scope.kernels.triton import backend, plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = 0.3
FUSED = sorted(name for name, score in SCORES.items() if score.kernel)
STATES = sorted({state for name in FUSED for state in SCORES[name].state})


@dataclass(frozen=True)
class FourRecent(NoEviction):
    """The host counts in `Twins`; this only says which tokens are recent."""

    @property
    def recent(self) -> int:
        return 4


def recipe_of(score: str | None, between: bool = False, **options: str | float) -> Recipe:
    """A recipe that tokens leave by.

    Args:
        score: its name; None if none leaves.
        between: whether `worth` runs between two kernels, as if no kernel knew the score.
        options: of the score.
    """
    own: Score | None = None
    if score is not None:
        cls = SCORES[score]
        own = (type(cls.__name__, (cls,), {"kernel": None}) if between else cls)(**options)
    return Recipe(ALLKV(), Whole(), FourRecent(), own)


@dataclass
class Case:
    """Rows with these prompts, of which the first `protected` tokens never leave."""

    prompts: tuple[int, ...] = (40, 3)
    protected: int = 30
    pool: int = 8
    heads: int = 2
    group: int = 4
    head_dim: int = 16
    dtype: torch.dtype = torch.float32
    window: int | None = None
    steps: int = 10
    # Selections come every so many steps, and then cut the pool to its size.
    period: int = 1
    sharpness: float = 1.0


CASES = {
    "plain": Case(),
    "one head": Case(group=1, heads=3, steps=5),
    "odd group": Case(group=7, heads=1),
    "head dim 64": Case(head_dim=64, heads=1, steps=5),
    "head dim 128": Case(head_dim=128, heads=1, steps=5),
    "many blocks": Case(prompts=(300, 64), heads=1, steps=5),
    "pool of many blocks": Case(prompts=(1100,), protected=3, pool=1060, heads=1, group=2, steps=2),
    "nearly empty": Case(prompts=(1, 2), protected=0, pool=6),
    "one loud token": Case(sharpness=8.0),
    "sliding window": Case(window=9),
    "several losses": Case(period=5),
    "nothing leaves": Case(pool=10**6),
    "all frozen": Case(protected=100, steps=6),
}


class Twins:
    """One layer in float64 for the torch step, and its copy for the kernels."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.random = case, torch.Generator().manual_seed(seed)
        self.slots = max(case.prompts) + case.steps + case.period
        self.layers = [SlotLayer(index=5), SlotLayer(index=5)]
        batch = len(case.prompts)
        for layer, dtype in zip(self.layers, (torch.float64, case.dtype), strict=True):
            like = torch.empty(case.head_dim, dtype=dtype, device=DEVICE)
            state = dict.fromkeys(STATES, ("H", "S")) | {"queries": ("H_q", 3, "D")}
            layer.allocate(like, batch, case.heads, case.heads * case.group, self.slots, state)
        self.newest, self.held = [0] * batch, [0] * batch
        for row, length in enumerate(case.prompts):
            self.prompt(row, length)

    def normal(self, *shape: int) -> Tensor:
        # Rounded first, so both twins start from the same numbers.
        states = torch.randn(*shape, generator=self.random)
        return states.to(self.case.dtype).double().to(DEVICE)

    def prompt(self, row: int, length: int) -> None:
        """Start a row over."""
        keys, values = self.normal(2, self.case.heads, length, self.case.head_dim)
        shape = len(STATES), self.case.heads, length
        begun = dict(zip(STATES, torch.rand(shape, generator=self.random).to(DEVICE), strict=True))
        kept = torch.arange(length, device=DEVICE).expand(self.case.heads, -1)
        draw = torch.tensor(7 + row)
        for layer, kernels in zip(self.layers, (reference, backend), strict=True):
            dtype = layer.keys.dtype
            entries = Entries(keys.to(dtype), values.to(dtype), kept)
            layer.write_prompt(kernels, row, entries, draw, begun)
        self.newest[row], self.held[row] = length - 1, length

    def step(self, number: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """One token in both: outputs ``[B, H_q, D]``."""
        case, batch = self.case, len(self.newest)
        self.newest = [rank + 1 for rank in self.newest]
        self.held = [count + 1 for count in self.held]
        due = number % case.period == 0 and recipe.score is not None
        budget = case.protected + case.pool
        losses = [max(count - budget, 0) if due else 0 for count in self.held]
        self.held = [count - loss for count, loss in zip(self.held, losses, strict=True)]
        counts = torch.tensor(
            [self.newest, [case.protected] * batch, losses], dtype=torch.int32, device=DEVICE
        )
        queries = self.normal(batch, case.heads * case.group, case.head_dim) * case.sharpness
        keys, values = self.normal(2, batch, case.heads, case.head_dim)
        outputs = []
        asks = recipe.score is None or not recipe.score.seldom or any(losses)
        for layer, kernels in zip(self.layers, (reference, backend), strict=True):
            layer.per_slot = per_slot(recipe.score.state if recipe.score else {})
            layer.counts = StepCounts(counts[0], *counts, max(losses), self.slots)
            new = NewTokens(*(states.to(layer.keys.dtype) for states in (queries, keys, values)))
            outputs.append(decode(layer, kernels, recipe, new, Sight(SCALING, case.window), asks))
        return outputs[0], outputs[1]

    def check_equal(self, steps: int, recipe: Recipe, tolerance: float = 1e-4) -> None:
        for number in range(1, steps + 1):
            expected, output = self.step(number, recipe)
            torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)
            slow, fast = self.layers
            assert torch.equal(fast.positions, slow.positions), f"step {number}"
            assert torch.equal(fast.ranks, slow.ranks)
            if self.newest[0] + 1 < self.slots:
                assert torch.equal(fast.vacant, slow.vacant)
            held = (fast.positions != FREE) & (fast.ranks >= self.case.protected)
            for name in fast.per_slot:
                torch.testing.assert_close(fast.state[name][held], slow.state[name][held])
            assert torch.equal(fast.state["queries"], slow.state["queries"].to(self.case.dtype))


@pytest.mark.parametrize("name", CASES)
def test_same_as_torch(name: str) -> None:
    case = CASES[name]
    Twins(case, seed=1).check_equal(case.steps, recipe_of("cumulative"))


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "odd group",
        "pool of many blocks",
        "nearly empty",
        "sliding window",
        "several losses",
    ],
)
def test_a_score_without_a_kernel_runs_between_two(name: str) -> None:
    """Attention is the other test's; here it is told, and slots are freed by another kernel."""
    case = CASES[name]
    Twins(case, seed=1).check_equal(case.steps, recipe_of("cumulative", between=True))


@pytest.mark.parametrize("name", ["several losses", "sliding window"])
def test_queries_that_look_alone(name: str) -> None:
    """They see what is held after a step, and leave it as it is; where nothing is held, nothing."""
    case = CASES[name]
    twins = Twins(case, seed=11)
    for number in range(1, 7):
        twins.step(number, recipe_of("current"))
    queries = twins.normal(len(case.prompts), case.heads * case.group, case.head_dim)
    seen = []
    for layer, kernels in zip(twins.layers, (reference, backend), strict=True):
        before = layer.positions.clone(), layer.vacant.clone(), layer.keys.clone()
        new = NewTokens(queries.to(layer.keys.dtype), layer.keys[:, :, 0], layer.values[:, :, 0])
        seen.append(look(layer, kernels, new, Sight(SCALING, case.window)))
        assert all(map(torch.equal, before, (layer.positions, layer.vacant, layer.keys)))
    torch.testing.assert_close(seen[1].double(), seen[0], rtol=0, atol=1e-4)
    layer.positions[0] = FREE
    assert (look(layer, backend, new, Sight(SCALING, case.window))[0] == 0).all()


@pytest.mark.parametrize("name", ["plain", "many blocks", "several losses"])
def test_more_heads_than_programs_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scope.kernels.triton.plan.processors", lambda device: 0)
    Twins(CASES[name], seed=9).check_equal(CASES[name].steps, recipe_of("current"))


@pytest.mark.parametrize(
    ("batch", "heads", "splits"),
    [(1, 2, 32), (43, 2, 6), (130, 2, 4), (144, 2, 4), (36, 8, 4), (40, 8, 1), (96, 8, 1)],
)
def test_an_h100_is_shared_out_to_all_rows_and_to_one(
    batch: int, heads: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "processors", lambda device: 132)
    monkeypatch.setattr(plan, "shared_memory", lambda device: 232_448)
    keys = torch.empty(batch, heads, 2560, 128, dtype=torch.bfloat16, device="meta")
    positions = torch.empty(keys.shape[:3], dtype=torch.int32, device="meta")
    slots = SlotTensors(keys, keys, positions, positions, vacant=positions[:, :, 0])
    assert plan.plan_of(slots, group=4, length=2560).splits == splits


@pytest.mark.parametrize("name", ["several losses", "pool of many blocks"])
def test_no_score(name: str) -> None:
    Twins(CASES[name], seed=2).check_equal(CASES[name].steps, recipe_of(None))


@pytest.mark.parametrize(
    ("score", "options"),
    [
        *((name, {}) for name in FUSED if name not in ("recurrence", "last_attended")),
        ("decayed", {"decay": 0.5}),
        ("max_decay", {"decay": 0.5}),
        ("value_range", {"large": 0.0}),
        ("value_range", {"large": 1.0}),
        # By default 1e-4, where shares of a thousand tokens lie on either side by rounding.
        ("recurrence", {"attended_above": 0.02}),
        ("last_attended", {"attended_above": 0.02}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["several losses", "pool of many blocks"])
def test_every_score(name: str, score: str, options: dict[str, float]) -> None:
    case = CASES[name]
    Twins(case, seed=10).check_equal(case.steps, recipe_of(score, **options))


@pytest.mark.parametrize("name", ["several losses", "sliding window", "odd group"])
def test_a_seldom_score_is_asked_where_tokens_leave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps run in the kernels that attend and evict, and find slots that were freed."""
    case, between = replace(CASES[name], period=3), []
    attend = backend.attend
    monkeypatch.setattr(backend, "attend", lambda *args: between.append(args) or attend(*args))
    Twins(case, seed=12).check_equal(10, recipe_of("snapkv_decode", last_queries=3))
    assert len(between) < 5


def test_largest_of_the_group() -> None:
    Twins(Case(), seed=3).check_equal(10, recipe_of("current", group_reduction="max"))


@pytest.mark.parametrize(
    "case",
    [Case(), Case(prompts=(1040,), protected=3, pool=1035, heads=1, group=2)],
    ids=["", "many blocks"],
)
def test_equal_scores_lose_the_newest(case: Case) -> None:
    """Nothing but one token is seen, so all others have received exactly nothing."""
    case = replace(case, period=4, sharpness=3000.0)
    Twins(case, seed=4).check_equal(4, recipe_of("current"), tolerance=1e-3)


def test_a_row_starts_over() -> None:
    twins = Twins(Case(), seed=5)
    twins.check_equal(5, recipe_of("current"))
    twins.prompt(1, 9)
    twins.check_equal(5, recipe_of("current"))


@pytest.mark.skipif(DEVICE == "cpu", reason="half precision is checked on a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_half_precision(dtype: torch.dtype, head_dim: int) -> None:
    case = Case(prompts=(700, 64, 1), head_dim=head_dim, dtype=dtype, steps=60)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    Twins(case, seed=6).check_equal(case.steps, recipe_of("recent"), tolerance)


@pytest.mark.parametrize("recipe", [recipe_of("current"), recipe_of("current", between=True)])
def test_rotates_as_transformers_does(recipe: Recipe) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    outputs = []
    for rotate_here in (False, True):
        twins = Twins(Case(), seed=7)
        random = torch.Generator().manual_seed(8)
        counts = torch.tensor([[40, 3], [30] * 2, [0] * 2], dtype=torch.int32, device=DEVICE)
        layer = twins.layers[1]
        layer.counts = StepCounts(counts[0], *counts, 0, twins.slots)
        queries, keys, values = (
            torch.randn(2, heads, 16, generator=random).to(DEVICE) for heads in (8, 2, 2)
        )
        angles = torch.rand(2, 8, generator=random).repeat(1, 2).to(DEVICE)
        rotation = angles.cos(), angles.sin()
        if rotate_here:
            turned = apply_rotary_pos_emb(
                queries[:, :, None], keys[:, :, None], *(part[:, None] for part in rotation)
            )
            queries, keys = (states[:, :, 0] for states in turned)
            rotation = None
        new = NewTokens(queries, keys, values, rotation)
        outputs.append(decode(layer, backend, recipe, new, Sight(SCALING), True))
    torch.testing.assert_close(*outputs)
