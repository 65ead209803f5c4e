"""Every notebook runs from top to bottom, and none is committed with outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SMALLER = {
    "MAX_NEW_TOKENS = 352": "MAX_NEW_TOKENS = 90",
    "NUM_PROMPTS = 16": "NUM_PROMPTS = 1",
    "WINDOWS = [32, 48, 64, 96, 128]": "WINDOWS = [32, 64]",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    for cell in code:
        for slow, fast in SMALLER.items():
            cell.source = cell.source.replace(slow, fast)
    # Pictures go beside a copy, not into the repository.
    (tmp_path / "scope").symlink_to(ROOT / "scope")
    (tmp_path / "baselines").symlink_to(ROOT / "baselines")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(path, tmp_path / "notebooks")
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": tmp_path / "notebooks"}}
    ).execute()
    assert list((tmp_path / "attention_map").glob("*.png"))
