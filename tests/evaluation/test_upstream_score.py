"""The upstream score is the original's: on its own files, and on any text."""

import csv
import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eval_gen
from scope.tasks.upstream import read_choices, read_numbers

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "results"
PUBLISHED = sorted(REFERENCE.glob("*/*/*/results.csv"))

WORDS = ("Answer_1:", "Answer_23:", "Answer_:", "answer is ", "answer is (", "The ", "12", "٣")
SIGNS = ("-3", "$5", "(B)", ")", "(", "**", ".", " ", "\n", "\n\n", "\t", "\x0b", "\r", "\u2028")
TEXTS = st.lists(st.sampled_from(WORDS + SIGNS), max_size=40).map("".join)


@given(TEXTS)
def test_linear_readers_find_what_the_original_expressions_find(text: str) -> None:
    assert read_numbers(text) == re.findall(
        r"Answer_\d+:\s*.*?answer is (\d+)", text, flags=re.DOTALL
    )
    assert read_choices(text) == re.findall(r"Answer_\d+:\s*.*?answer is \((.*?)\)", text)


@pytest.mark.skipif(not PUBLISHED, reason=f"no published results in {REFERENCE}")
@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.parts[-3])
def test_published_figures_are_reproduced(published: Path, tmp_path: Path) -> None:
    """Every data set whose outputs are there gives the published figure; the others give -1."""
    folder = tmp_path / published.parts[-3] / published.parts[-2]
    present = set()
    for file in published.parent.glob("*/*.json.gz"):
        present.add(file.parent.name)
        target = folder / file.parent.name / file.stem
        target.parent.mkdir(parents=True)
        target.write_bytes(gzip.decompress(file.read_bytes()))

    assert eval_gen.main(["--results_dir", str(folder)]) == 0

    header, figures = csv.reader(published.read_text().splitlines())
    expected = [
        value if name in present or name == "dataset" else "-1"
        for name, value in zip(header, figures, strict=True)
    ]
    written = (folder / "results.csv").read_bytes().decode()
    assert written == ",".join(header) + "\r\n" + ",".join(expected) + "\r\n"
