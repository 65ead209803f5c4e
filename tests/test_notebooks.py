"""Every notebook runs from top to bottom, and none is committed with outputs."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SMALLER = {
    "MAX_NEW_TOKENS = 352": "MAX_NEW_TOKENS = 40",
    "NUM_PROMPTS = 16": "NUM_PROMPTS = 1",
    "WINDOWS = [32, 48, 64, 96, 128]": "WINDOWS = [64]",
    "dpi=200": "dpi=50",
    "dpi=150": "dpi=50",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the project is imported already."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # pictures go beside it
    monkeypatch.setattr(sys, "path", [*sys.path])
    namespace = {"__name__": path.stem}
    for cell in code_of(path):
        assert not cell.outputs
        assert not cell.execution_count
        source = cell.source
        for slow, fast in SMALLER.items():
            source = source.replace(slow, fast)
        exec(compile(source, path.name, "exec"), namespace)
    plt.close("all")
    assert sys.path[0] == str(tmp_path)  # where the project is, seen from its notebooks
    assert list((tmp_path / "attention_map").glob("*.png"))


def test_jupyter_imports_what_they_need() -> None:
    first = [code_of(path)[0].source for path in NOTEBOOKS]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, first)))
    folder = {"path": ROOT / "notebooks"}
    NotebookClient(notebook, timeout=120, resources={"metadata": folder}).execute()
