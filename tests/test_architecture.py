"""Imports point one way, and README's drawing is what the code's imports say."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the ground up. What stands in a line may import what stands in lines above it.
FLOORS = [
    {"errors"},
    {"kernels"},
    {"methods"},
    {"budgets", "scores"},
    {"decoding", "baselines"},
    {"registry"},
    {"compression"},
    {"cache"},
    {"attention"},
    {"generation"},
    {"recall"},
    {"tasks"},
    {"longgenbench", "evaluation"},
    {"harness"},
    {"plots"},
]
# The ground is everybody's, and not drawn.
GROUND = {"errors"}


def room_of(module: str) -> str | None:
    """``scope.cache.plan`` is in ``cache``; None for what is not the project's."""
    first, _, rest = module.partition(".")
    if first == "baselines":
        return first
    return rest.partition(".")[0] if first == "scope" and rest else None


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports, those imported late or for types alone included."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in [*(ROOT / "scope").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = room_of(".".join(parts))
        if room is None or parts == ("scope", "__init__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = inner if node.module == "scope" else [node.module]
            found[room] |= {other for name in names if (other := room_of(name))} - {room}
    return found


def test_imports_point_one_way() -> None:
    height = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    found = imports()
    assert found.keys() <= height.keys()
    wrong = [
        f"{room} imports {other}"
        for room, others in found.items()
        for other in others
        if height[other] >= height[room]
    ]
    assert not wrong


def test_kernels_know_no_cache_and_no_method() -> None:
    assert imports()["kernels"] <= GROUND


def test_readme_draws_the_imports() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawing = re.findall(r"^(\w+) +─► +([\w ]+)$", text, re.MULTILINE)
    drawn = {room: set(others.split()) for room, others in drawing}
    found = {room: others - GROUND for room, others in imports().items()}
    assert drawn == {room: others for room, others in found.items() if others}
