"""What methods look like: each its own way, told apart without colours and by colour-blind eyes."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from scope import Compression, registry
from scope.evaluation.styles import COMPRESSORS, STRATEGIES, style_of

# Linear RGB as those see it who lack one kind of cone: Machado et al. 2009, severity 1.
BLIND = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, eyes: str = "none") -> NDArray[np.float64]:
    """CIE L*, a*, b*."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLIND[eyes]) @ linear, 0, 1)
    x, y, z = (
        np.cbrt(part) if part > (6 / 29) ** 3 else part / (3 * (6 / 29) ** 2) + 4 / 29
        for part in XYZ @ seen / XYZ.sum(axis=1)
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_method_has_a_look_of_its_own() -> None:
    assert list(COMPRESSORS) == [name.lower() for name in registry.COMPRESSORS]
    assert sorted(STRATEGIES) == sorted(name.lower() for name in registry.STRATEGIES)
    assert len({colour for colour, _ in STRATEGIES.values()}) == len(STRATEGIES)
    assert len(set(COMPRESSORS.values())) == len(COMPRESSORS)


@pytest.mark.parametrize("eyes", BLIND)
def test_equal_markers_are_told_apart_without_colours(eyes: str) -> None:
    for (one, fill), (other, other_fill) in combinations(STRATEGIES.values(), 2):
        if fill == other_fill:
            apart = lab(one, eyes) - lab(other, eyes)
            assert abs(apart[0]) >= 15 or eyes != "none", (one, other)
            assert np.linalg.norm(apart) >= 15, (one, other)


def test_a_fill_says_what_a_strategy_does() -> None:
    steps = np.arange(1, 4096)
    for name in registry.STRATEGIES:
        strategy = Compression("ALLKV", name).recipe(4096).strategy
        if strategy.unified:
            expected = "none"
        elif strategy.score is None:
            expected = "top"
        else:
            expected = "full" if strategy.due(steps).all() else "bottom"
        assert STRATEGIES[name.lower()][1] == expected


def test_other_methods_look_the_same_everywhere_and_as_none_of_these() -> None:
    ours = style_of("H2O+slide (current)")
    theirs = style_of("Mine+mine (current)")
    assert theirs == style_of("Mine+mine")
    assert theirs["fillstyle"] not in {fill for _, fill in STRATEGIES.values()}
    assert theirs["marker"] not in COMPRESSORS.values()
    assert ours["fillstyle"] == "full"
    assert {style_of(f"Mine+mine{n}")["color"] for n in range(60)} == {
        colour for colour, _ in STRATEGIES.values()
    }
    # Not by Python's own hashes, which differ from process to process.
    assert (theirs["color"], theirs["marker"]) == ("#8C510A", "P")


def test_the_line_is_what_was_chosen_to_compete_by() -> None:
    lines = {name: style_of(name)["linestyle"] for name in ("a+h2o", "a+slide (cumulative, W 4)")}
    assert list(lines.values()) == ["-", "--"]
