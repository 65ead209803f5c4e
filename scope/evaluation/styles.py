"""What configurations look like: each the same in all pictures of a report, and as no other.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers
tell apart, but for the yellow, which is faint on white. Markers go round beside them, in a circle
of another length, so that two of one colour differ in their markers, and the first eleven also
without colours.
"""

from collections.abc import Iterable, Mapping
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "X", "p", "*", "<", "P", ">")
LINES = ("-", "--", ":", "-.")


def looks_of(names: Iterable[str]) -> Mapping[str, dict[str, Any]]:
    """What matplotlib draws each configuration with; the same for the same names in any order."""
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 6,
            "markeredgewidth": 0.5,
            "markeredgecolor": "white",
        }
        for number, name in enumerate(sorted(set(names), key=lambda name: (name.lower(), name)))
    }
