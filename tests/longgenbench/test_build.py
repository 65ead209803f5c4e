"""Data files: the published ones byte for byte, and the fixed ones without their faults."""

import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from scope.longgenbench.build import build, main, read_meta

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY.parent / "shared" / "reference"
SAMPLE = REPOSITORY / "scope" / "longgenbench" / "sample"
DEMONSTRATIONS = {
    "gsm8k": "gsm8k_8demos.txt",
    "csqa": "csqa_5demos.txt",
    "mmlu": "mmlu_demos.json",
}
OPTION = re.compile(r"\([A-E]\) ")


def rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference folder, unpacked."""
    if not (REFERENCE / "longgenbench").is_dir():
        pytest.skip(f"no published files in {REFERENCE}")
    folder = tmp_path_factory.mktemp("published")
    for file in [*(REFERENCE / "longgenbench").iterdir(), *(REFERENCE / "prompts").iterdir()]:
        data = file.read_bytes()
        if file.suffix == ".gz":
            (folder / file.stem).write_bytes(gzip.decompress(data))
        else:
            (folder / file.name).write_bytes(data)
    with tarfile.open(REFERENCE / "mmlu" / "mmlu_csv.tar.gz") as archive:
        archive.extractall(folder / "mmlu", filter="data")
    return folder


@pytest.fixture(scope="module")
def sources(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Local sources: MMLU's CSVs, and GSM8K and CSQA rows taken from the published files."""
    folder = tmp_path_factory.mktemp("sources")
    for dataset, widths in {"gsm8k": (30, 60), "csqa": (40, 80)}.items():
        longest = max((rows(published / f"{dataset}_{k}.jsonl") for k in widths), key=count)
        with (folder / f"{dataset}.jsonl").open("w", encoding="utf-8") as file:
            for row in longest:
                for question, answer in zip(row["questions"], row["answers"], strict=True):
                    file.write(json.dumps(source_row(dataset, question, answer)) + "\n")
    return {
        "gsm8k": folder / "gsm8k.jsonl",
        "csqa": folder / "csqa.jsonl",
        "mmlu": published / "mmlu",
    }


def count(data: list[dict[str, Any]]) -> int:
    return sum(len(row["questions"]) for row in data)


def source_row(dataset: str, question: str, answer: str) -> dict[str, Any]:
    if dataset == "gsm8k":
        return {"question": question, "answer": answer}
    stem, _, options = question.rpartition("\n")
    texts = [text.strip(" ") for text in OPTION.split(options)[1:]]
    return {
        "question": stem,
        "choices": {"label": list("ABCDE"), "text": texts},
        "answerKey": answer,
    }


def test_all_six_published_files_byte_for_byte_in_30_seconds(
    published: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    start = time.monotonic()
    for dataset, widths in {"gsm8k": (30, 60), "csqa": (40, 80), "mmlu": (30, 60)}.items():
        for k in widths:
            file = build(
                dataset,
                k,
                style="upstream",
                source=sources[dataset],
                prompt_path=published / DEMONSTRATIONS[dataset],
                out=tmp_path,
            )
            assert file.read_bytes() == (published / file.name).read_bytes(), file.name
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("k", "fragments"), [(30, 33), (60, 73)])
def test_fixed_mmlu_puts_every_question_beside_its_own_gold_answer(
    published: Path, tmp_path: Path, k: int, fragments: int
) -> None:
    """Counts questions that are not the CSV's question of that gold answer, whole."""

    def misaligned(data: list[dict[str, Any]]) -> int:
        wrong = 0
        for row in data:
            with (published / "mmlu" / "test" / f"{row['task']}_test.csv").open(
                encoding="utf-8", newline=""
            ) as file:
                source = list(csv.reader(file))[:k]
            for shown, gold, cells in zip(row["questions"], row["answers"], source, strict=True):
                whole = shown.startswith(cells[0]) and all(c in shown for c in cells[1:5])
                wrong += not whole or gold != cells[5]
                assert f":\n{shown}\n" in row["prompt"]
        return wrong

    fixed = rows(build("mmlu", k, source=published / "mmlu", out=tmp_path))
    assert misaligned(fixed) == 0
    assert all(
        row["prompt"].startswith(f"Subject: {row['task'].replace('_', ' ')}\n") for row in fixed
    )
    assert len(fixed) == 57

    def count_fragments(data: list[dict[str, Any]]) -> int:
        return sum(not ("(A)" in q and "(D)" in q) for row in data for q in row["questions"])

    as_published = rows(published / f"mmlu_{k}.jsonl")
    assert (count_fragments(as_published), count_fragments(fixed)) == (fragments, 0)
    assert misaligned(as_published) > fragments


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_any_k_numbers_on_from_the_demonstrations(tmp_path: Path, k: int) -> None:
    file = build("gsm8k", k, source=SAMPLE / "source" / "gsm8k.jsonl", out=tmp_path)
    data = rows(file)
    assert len(data) == 12 // k
    for row in data:
        numbers = [int(n) for n in re.findall(r"^Question_(\d+):$", row["prompt"], re.MULTILINE)]
        assert numbers == list(range(1, 8 + k + 1))
        assert len(row["questions"]) == len(row["answers"]) == k
    asked = [question for row in data for question in row["questions"]]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("dataset", ["gsm8k", "csqa"])
def test_the_sample_is_what_the_builder_builds(tmp_path: Path, dataset: str) -> None:
    file = build(
        dataset,
        4,
        source=SAMPLE / "source" / f"{dataset}.jsonl",
        prompt_path=SAMPLE / "source" / f"{dataset}_demos.txt",
        out=tmp_path,
    )
    for name in (file.name, f"{dataset}_4.meta.json"):
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes()


def test_demonstrations_are_complete() -> None:
    """Each has as many worked answers as questions, and every named option is there."""
    for dataset in ("gsm8k", "csqa", "mmlu"):
        text = (SAMPLE.parent / "demonstrations" / f"{dataset}.txt").read_text(encoding="utf-8")
        blocks = dict(
            re.findall(r"^((?:Question|Answer)_\d+):\n(.*?)(?=\n\n|\n*\Z)", text, re.M | re.S)
        )
        number = len(blocks) // 2
        assert set(blocks) == {
            f"{w}_{i}" for w in ("Question", "Answer") for i in range(1, number + 1)
        }
        for i in range(1, number + 1):
            answer = re.search(r"The answer is \(?(\w+)\)?\.$", blocks[f"Answer_{i}"])
            assert answer
            if dataset != "gsm8k":
                assert len(OPTION.findall(blocks[f"Question_{i}"])) == (
                    5 if dataset == "csqa" else 4
                )
                assert f"({answer[1]}) " in blocks[f"Question_{i}"]


def test_parquet_and_the_data_sets_own_json_give_the_same_file(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = rows(SAMPLE / "source" / "csqa.jsonl")
    parquet.write_table(pa.Table.from_pylist(flat), tmp_path / "csqa.parquet")
    nested = tmp_path / "csqa.jsonl"
    with nested.open("w") as file:
        for row in flat:
            choices = [
                {"label": label, "text": text}
                for label, text in zip(row["choices"]["label"], row["choices"]["text"], strict=True)
            ]
            question = {"stem": row["question"], "choices": choices}
            file.write(json.dumps({"answerKey": row["answerKey"], "question": question}) + "\n")
    built = [
        build("csqa", 3, source=source, out=tmp_path / str(i)).read_bytes()
        for i, source in enumerate(
            [SAMPLE / "source" / "csqa.jsonl", tmp_path / "csqa.parquet", nested]
        )
    ]
    assert built[0] == built[1] == built[2]


def test_the_note_says_how_the_file_was_made(tmp_path: Path) -> None:
    source = SAMPLE / "source" / "gsm8k.jsonl"
    file = build("gsm8k", 3, source=source, out=tmp_path, seed=7)
    meta = read_meta(file)
    assert meta == {
        "dataset": "gsm8k",
        "style": "fixed",
        "k": 3,
        "seed": 7,
        "prompts": 4,
        "source": {
            "files": "gsm8k.jsonl",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        },
        "demonstrations": "own",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    ordered = rows(build("gsm8k", 3, source=source, out=tmp_path / "ordered"))
    shuffled = rows(file)
    assert {q for r in ordered for q in r["questions"]} == {
        q for r in shuffled for q in r["questions"]
    }
    assert ordered[0]["questions"] != shuffled[0]["questions"]
    assert read_meta(tmp_path / "other.jsonl") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm8k", "--k", "0"], "at least 1 question"),
        (["gsm8k", "--k", "13"], "the source has 12 questions, less than one prompt of 13"),
        (["gsm8k", "--k", "4", "--source", "{missing}"], "does not exist"),
        (["gsm8k", "--k", "4", "--source", "{broken}"], r"broken\.jsonl:2: not a JSON line"),
        (["csqa", "--k", "4"], r"gsm8k\.jsonl, row 1: not a csqa row"),
        (["csqa", "--k", "1", "--source", "{unlabeled}"], "row 1: no gold answer"),
        (["mmlu", "--k", "4"], r"no <subject>_test\.csv"),
        (
            ["mmlu", "--k", "1", "--source", "{short}"],
            r"a_test\.csv, row 2: question, four options",
        ),
        (["gsm8k", "--k", "4", "--style", "upstream"], "needs --prompt_path"),
        (["gsm8k", "--k", "4", "--prompt_path", "{missing}"], "cannot read the demonstrations"),
        (["gsm8k", "--k", "4", "--prompt_path", "{broken}"], "no 'Question_1:'"),
        (
            ["mmlu", "--k", "4", "--style", "upstream", "--prompt_path", "{broken}"],
            "JSON by subject",
        ),
        (["gsm8k", "--k", "4", "--out", "{broken}/x"], "cannot write to"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question"\n')
    unlabeled = tmp_path / "unlabeled.jsonl"
    unlabeled.write_text('{"question": "?", "choices": {"text": ["a", "b"]}, "answerKey": ""}')
    short = tmp_path / "short"
    short.mkdir()
    (short / "a_test.csv").write_text("?,a,b,c,d,A\n?,a,b,c,d,\n")
    paths = {
        "missing": tmp_path / "missing",
        "broken": broken,
        "unlabeled": unlabeled,
        "short": short,
    }
    filled = [argument.format(**paths) for argument in arguments]
    if "--source" not in filled:
        filled += ["--source", str(SAMPLE / "source" / "gsm8k.jsonl")]
    if "--out" not in filled:
        filled += ["--out", str(tmp_path)]
    assert main(filled) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error.splitlines()[-1])
    assert error.splitlines()[-1].startswith("error: ")


def test_without_the_hub_the_error_names_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert main(["gsm8k", "--k", "4", "--out", str(tmp_path)]) == 2
    assert "no route to the hub); give the data with --source" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["gsm8k", "csqa", "mmlu"])
def test_the_hub_gives_the_same_file_as_local_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    import datasets

    local = SAMPLE / "source" / f"{dataset}.jsonl"
    if dataset == "mmlu":
        local = tmp_path / "mmlu" / "test"
        local.mkdir(parents=True)
        table = [("Is 1,000 a number?", "None", "NA", "no, \n\nnever", "yes", "D")] * 2
        hub = []
        for subject in ("b_law", "a_art"):
            with (local / f"{subject}_test.csv").open("w", newline="") as file:
                csv.writer(file).writerows(table)
            hub += [
                {"subject": subject, "question": q, "choices": list(options), "answer": 3}
                for q, *options, _ in table
            ]
    else:
        hub = rows(local)
    revisions = []

    def load_dataset(*names: str | None, split: str, revision: str) -> list[dict[str, Any]]:
        revisions.append(revision)
        return hub

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = build(dataset, 2, out=tmp_path / "hub")
    assert from_hub.read_bytes() == build(dataset, 2, source=local, out=tmp_path).read_bytes()
    assert re.fullmatch("[0-9a-f]{40}", revisions[0])
    assert read_meta(from_hub)["source"]["revision"] == revisions[0]


def test_create_scripts(tmp_path: Path) -> None:
    for dataset in ("gsm8k", "mmlu", "csqa"):
        script = REPOSITORY / "scripts" / "scripts_longgenbench" / f"create_{dataset}.sh"
        assert f"scope.longgenbench.build {dataset} " in script.read_text()
    subprocess.run(
        [
            *("bash", script),
            *("--source", SAMPLE / "source" / "csqa.jsonl"),
        ],
        cwd=tmp_path,
        env={**os.environ, "K": "3", "PYTHON": sys.executable},
        check=True,
    )
    assert (tmp_path / "data" / "LongGenBench" / "csqa" / "csqa_3.jsonl").exists()
