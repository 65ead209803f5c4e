"""Counts of long generations: no tensors, only the schedule."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from scope import Compression, Fidelity, ScopeError
from scope.budgets.pyramid import pyramid_budgets
from scope.cache.plan import slots_needed
from scope.cache.schedule import Schedule
from scope.registry import COMPRESSORS, STRATEGIES
from tests.core.tiny import compression_of

R = 256


@dataclass
class Counts:
    """One row of a generation.

    Attributes:
        pools: decode tokens held after step t = 1, 2, ...
        selecting: steps at which the strategy chose what stays.
    """

    pools: list[int]
    selecting: list[int]


def count(
    strategy: str, window: int, total: int, steps: int, num_layers: int = 2, fidelity: str = "paper"
) -> Counts:
    compression = compression_of("H2O", strategy, 2048, 8, window, R, fidelity=fidelity)
    schedule = Schedule(compression.recipe(total), num_layers, batch_size=1)
    schedule.admit(0, prompt_length=3000)
    pools, selections = [], []
    for _ in range(steps):
        schedule.advance()
        assert (schedule.now.lengths == schedule.now.lengths[0]).all()
        pools.append(int(schedule.now.lengths[0, 0]) - 2048)
        selections.append(int(schedule.selections[0, 0]))
    selecting = np.flatnonzero(np.diff(selections, prepend=0)) + 1
    return Counts(pools, selecting.tolist())


# --- the paper ------------------------------------------------------------------------------------


def test_slide_selects_at_every_step_once_its_pool_is_full() -> None:
    counts = count("slide", 512, total=4096, steps=4096)
    assert counts.pools == [min(step, 512) for step in range(1, 4097)]
    assert counts.selecting == list(range(512, 4097))


def test_adaptive_grows_from_r_to_w() -> None:
    pools = count("adaptive", 512, total=4096, steps=4096).pools
    assert pools[:R] == list(range(1, R + 1))
    assert pools[R] == R, "the first token leaves at t = R + 1"
    assert pools[-1] == max(pools) == 512
    assert pools[-2] == 511, "and W is reached at t = T, no earlier"
    assert pools == sorted(pools)


@pytest.mark.parametrize(
    ("total", "window"), [(4096, 512), (4096, 1024), (7950, 512), (7950, 1024)]
)
def test_discontinuous_selects_as_often_as_its_window_grows(total: int, window: int) -> None:
    counts = count("discontinuous", window, total, steps=total)
    zeta = (total - R) / (window - R)
    growing = range(1, window - R + 1)
    assert len(counts.selecting) == window - R
    assert counts.selecting == [R + -int(-zeta * k // 1) for k in growing]
    assert [counts.pools[step - 1] for step in counts.selecting] == [R + k for k in growing]
    assert max(counts.pools) <= window + zeta
    if (total, window) == (4096, 512):
        assert zeta == 15
        assert set(np.diff(counts.selecting)) == {15}


def test_a_generation_shorter_than_its_window_loses_nothing() -> None:
    for strategy in STRATEGIES:
        for total in (1, 100, R, R + 1, 511):
            if strategy not in ("pyramidinfer", "rpc"):  # by layer; a share of t from the start
                assert count(strategy, 512, total, steps=total).pools[-1] == min(total, 512)


# --- the published code: METHODS.md section 1.2, item 6 -------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "total", "window", "selections", "first", "final", "peak", "num_layers"),
    [
        ("slide", 4096, 512, 3584, [512, 513], 512, 512, 32),
        ("slide", 4096, 1024, 3072, [1024, 1025], 1024, 1024, 32),
        ("slide", 7950, 512, 7438, [512, 513], 512, 512, 32),
        ("slide", 7950, 1024, 6926, [1024, 1025], 1024, 1024, 32),
        ("adaptive", 4096, 512, 3822, [274, 275], 528, 528, 32),
        ("adaptive", 4096, 1024, 3777, [319, 320], 1074, 1074, 32),
        ("adaptive", 7950, 512, 7686, [264, 265], 520, 520, 32),
        ("adaptive", 7950, 1024, 7666, [284, 285], 1050, 1050, 32),
        ("discontinuous", 4096, 512, 238, [289, 305, 321], 542, 542, 32),
        ("discontinuous", 4096, 1024, 629, [], 1077, 1078, 2),
        ("discontinuous", 7950, 512, 247, [], 548, 548, 2),
        ("discontinuous", 7950, 1024, 696, [], 1059, 1059, 2),
    ],
)
def test_upstream_counters(
    strategy: str,
    total: int,
    window: int,
    selections: int,
    first: list[int],
    final: int,
    peak: int,
    num_layers: int,
) -> None:
    # The last generated token is never fed, so there is one forward fewer than tokens.
    counts = count(strategy, window, total, total - 1, num_layers, fidelity="upstream")
    assert len(counts.selecting) == selections
    assert counts.selecting[: len(first)] == first
    assert (counts.pools[-1], max(counts.pools)) == (final, peak)


@pytest.mark.parametrize("strategy", ["slide", "adaptive", "discontinuous", "h2o", "None"])
def test_a_million_steps_are_not_counted_one_by_one(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Schedule, "advance")
    total = 10**6
    recipe = compression_of("SnapKV", strategy, 2048, 8, 512, R).recipe(total)
    zeta = (total - R) // (512 - R)
    pool = {"None": total, "discontinuous": 511 + zeta, "adaptive": 512}.get(strategy, 513)
    [slots] = slots_needed(recipe, total, 1, [3000])
    assert slots == 2048 + pool


# --- any configuration ----------------------------------------------------------------------------


@st.composite
def compressions(draw: st.DrawFn) -> Compression:
    window = draw(st.integers(2, 12), "W")
    capacity = draw(st.integers(2, 24), "C")
    recent = draw(st.integers(1, window - 1), "R")
    try:
        return Compression.from_shared(
            method=draw(st.sampled_from(list(COMPRESSORS))),
            decoding_metric=draw(st.sampled_from(list(STRATEGIES))),
            max_capacity_prompt=capacity,
            window_size=draw(st.integers(1, capacity - 1), "w"),
            decoding_window_size=window,
            decoding_recent_size=recent,
            fidelity=Fidelity.preset(draw(st.sampled_from(["paper", "upstream"]))),
        )
    except ScopeError:
        reject()


@settings(max_examples=300)  # as many as there are pairs, under both fidelities
@given(
    compression=compressions(),
    num_layers=st.integers(1, 5),
    total=st.integers(1, 40),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_what_must_leave_may_leave(
    compression: Compression, num_layers: int, total: int, lengths: list[int]
) -> None:
    recent = compression.recipe(total).strategy.recent
    together = Schedule(compression.recipe(total), num_layers, len(lengths))
    alone = [Schedule(compression.recipe(total), num_layers, 1) for _ in lengths]
    for row, length in enumerate(lengths):
        together.admit(row, length)
        alone[row].admit(0, length)
    for _ in range(total):
        for schedule in (together, *alone):
            schedule.advance()
        attended = together.now.lengths + together.losses
        may_go = attended - np.minimum(together.protected, attended) - recent
        assert (together.losses >= 0).all()
        assert (together.losses <= np.maximum(may_go, 0)).all()
        for row, schedule in enumerate(alone):
            assert (together.now.lengths[:, row] == schedule.now.lengths[:, 0]).all()
    slots = slots_needed(compression.recipe(total), total, num_layers, lengths)
    assert slots == together.peak.max(axis=1).tolist()


@given(
    compression=compressions(),
    num_layers=st.integers(1, 5),
    # For a while each row idles, or generates after a prompt of so many tokens.
    spells=st.lists(st.tuples(*[st.none() | st.integers(1, 40)] * 2), min_size=1, max_size=4),
)
def test_a_row_counts_as_alone_and_idle_rows_stand_still(
    compression: Compression, num_layers: int, spells: list[tuple[int | None, ...]]
) -> None:
    total = 15
    schedule = Schedule(compression.recipe(total), num_layers, batch_size=2)
    for lengths in spells:
        alone = Schedule(compression.recipe(total), num_layers, batch_size=2)
        for row, length in enumerate(lengths):
            if length is None:
                schedule.release(row)
            else:
                schedule.admit(row, length)
                alone.admit(row, length)
        for _ in range(total):
            schedule.advance()
            alone.advance()
            for counts, expected in zip(_counts(schedule), _counts(alone), strict=True):
                assert (counts == expected).all()
                assert all(lengths[row] for row in np.flatnonzero(counts.reshape(-1, 2).any(0)))


def _counts(schedule: Schedule) -> list[np.ndarray]:
    own = [counts for counts in vars(schedule).values() if isinstance(counts, np.ndarray)]
    return [*own, *vars(schedule.now).values()]


@given(
    average=st.integers(0, 5000),
    num_layers=st.integers(1, 48),
    beta=st.integers(2, 20),
    spare=st.integers(0, 6000),
)
def test_pyramid_is_a_line_with_an_exact_sum(
    average: int, num_layers: int, beta: int, spare: int
) -> None:
    ceiling = average + spare
    budgets = pyramid_budgets(average, num_layers, beta, ceiling)
    assert sum(budgets) == num_layers * average
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] >= 0
    assert budgets[0] <= ceiling
    if num_layers > 1:
        assert budgets[0] == min(2 * average - average // beta, ceiling)
        line = np.linspace(budgets[0], 2 * average - budgets[0], num_layers)
        assert np.abs(budgets - line).max() < 1
