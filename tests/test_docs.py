"""The guide's code runs, and gives what it says; what is said of methods is the registry's."""

import re
from pathlib import Path

import pytest

from scope import registry

ROOT = Path(__file__).parents[1]


def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    namespace = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "adding_a_method.md", "exec"), namespace)
    label, *table = capsys.readouterr().out.splitlines()
    assert label == re.search(r"# (ValueNorm.*)", text)[1]
    assert [row.rsplit(maxsplit=1)[0] for row in table] == [
        "SnapKV+slide (current)",
        "ValueNorm+slide (current)",
        "ALLKV+root (counted)",
    ]
    assert all(0 <= float(row.rsplit(maxsplit=1)[1]) <= 100 for row in table)


def test_all_methods_are_listed() -> None:
    """As `python -m scope.registry` prints them."""
    assert registry.overview() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert registry.tables() in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_a_default_of_a_reader_of_its_own_is_told() -> None:
    assert registry.readers_of_options()["period"][1] == ["periodic", "rpc (1024)", "lococo (16)"]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"
