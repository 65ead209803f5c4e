"""What a method looks like: the same in every picture, whatever else is in it.

The decoding strategy is told by a colour and by what of the marker is filled: all of it where the
generation has a pool of its own that is cut at every step, its lower half where that is cut now and
then, the upper half where nothing leaves, and nothing where one budget is for prompt and
generation. Strategies with equal markers are at least 15 apart in lightness (CIE L*), so that they
differ in print without colours and for colour-blind readers; most colours are those of Okabe and
Ito (https://jfly.uni-koeln.de/color/). The prefill compressor is told by the
marker's shape, and by the line what tokens compete by, where that was chosen. Methods that are not
named here have what their names draw: strategies a marker whose left half is filled and one of the
colours, compressors one of the shapes that are left.
"""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

# Colour and fill.
STRATEGIES = {
    "none": ("#000000", "top"),
    "refreshkv": ("#8C510A", "top"),
    "slide": ("#0072B2", "full"),
    "adaptive": ("#1FB58A", "full"),
    "discontinuous": ("#56B4E9", "bottom"),
    "periodic": ("#332288", "bottom"),
    "rpc": ("#B84378", "bottom"),
    "h2o": ("#D55E00", "none"),
    "slm": ("#E69F00", "none"),
    "pyramidinfer": ("#923083", "none"),
    "lococo": ("#661100", "none"),
}
COMPRESSORS = {
    "allkv": "o",
    "snapkv": "s",
    "pyramidkv": "^",
    "zigzagkv": "<",
    "kvcompress": "p",
    "h2o": "D",
    "pyramidinfer": "v",
    "streamingllm": "X",
    "lococo": "h",
    "kvmerger": "*",
}
_COLOURS = [colour for colour, _ in STRATEGIES.values()]
_LINES = {"cumulative": "--", "random": ":", "recent": "-."}
_OTHER_SHAPES, _OTHER_FILL = (">", "d", "8", "P"), "left"


def style_of(name: str) -> dict[str, Any]:
    """What matplotlib draws lines of ``SnapKV+slide (cumulative)`` with."""
    compressor, _, rest = name.lower().partition("+")
    strategy, _, chosen = rest.partition(" ")
    colour, fill = STRATEGIES.get(strategy, (_drawn(strategy, _COLOURS), _OTHER_FILL))
    lines = [_LINES[one] for one in chosen.strip("()").split(", ") if one in _LINES]
    return {
        "color": colour,
        "linestyle": lines[0] if lines else "-",
        "marker": COMPRESSORS.get(compressor, _drawn(compressor, _OTHER_SHAPES)),
        "markersize": 6,
        "fillstyle": fill,
        "markerfacecoloralt": "white",
        "markeredgewidth": 0.5 if fill == "full" else 1.0,
        "markeredgecolor": "white" if fill == "full" else colour,
    }


def _drawn(name: str, among: Sequence[str]) -> str:
    """The same one for a name, wherever and whenever."""
    return among[crc32(name.encode()) % len(among)]
