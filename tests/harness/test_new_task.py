"""A data set is one file and its place in the registry: nothing else knows of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import eval_gen
from scope.errors import ScopeError
from scope.harness.cli import main
from scope.longgenbench.build import main as build
from scope.tasks import registry, upstream
from scope.tasks.answers import read_number
from scope.tasks.numbered import NumberedTask
from scope.tasks.sources import Item, Row
from tests.harness.running import arguments_of, read

ROOT = Path(__file__).parents[2]


class Toy(NumberedTask):
    """Sums, answered by whole numbers."""

    name = "toy"
    instruction = "w1"

    def item(self, row: Row) -> Item:
        return Item(row["sum"], row["total"])

    def has_gold(self, item: Item) -> bool:
        return item.answer.isdigit()

    def gold(self, answer: str) -> int:
        if not answer.isdigit():
            raise ScopeError(f"{answer} is no sum")
        return int(answer)

    def said(self, answer: str, question: str) -> object:
        return read_number(answer)

    def upstream_gold(self, answer: str) -> str:
        return answer

    def upstream_said(self, text: str) -> list[str]:
        return upstream.read_numbers(text)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASKS, "toy", Toy())


@pytest.mark.usefixtures("toy")
def test_a_toy_is_built_run_and_scored(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, worked = tmp_path / "sums.jsonl", tmp_path / "worked.txt"
    source.write_text("".join(f'{{"sum": "{i}+1?", "total": "{i + 1}"}}\n' for i in range(4)))
    worked.write_text("Question_1:\n1+1?\n\nAnswer_1:\nThe answer is 2.\n")
    options = {"--k": 2, "--source": source, "--prompt_path": worked, "--out": tmp_path}
    assert build(["toy", *(str(part) for option in options.items() for part in option)]) == 0
    data = tmp_path / "toy_2.jsonl"
    assert [row["answers"] for row in read(data)] == [["1", "2"], ["3", "4"]]

    arguments = arguments_of(model_folder, data, tmp_path / "out", max_new_tokens=4)
    place = arguments.index("--instruction_file")
    assert main(arguments[:place] + arguments[place + 2 :]) == 0
    result = tmp_path / "out" / "tiny-llama_24" / "toy" / "H2O.json"
    records = read(result)
    assert records[0]["prompt"].startswith("w1\n\nExamples:")
    records[0]["pred"] = "Answer_2: The answer is 1. Answer_3: The answer is 3."
    result.write_text("".join(json.dumps(record) + "\n" for record in records))
    capsys.readouterr()
    assert eval_gen.main(["--results_dir", str(tmp_path / "out")]) == 0
    assert "toy" in capsys.readouterr().out
    table = (tmp_path / "out" / "tiny-llama_24" / "results.csv").read_text()
    assert table.splitlines()[0] == "dataset,gsm8k,mmlu,csqa,toy"
    assert table.splitlines()[1].endswith(",-1,-1,-1,25.0")


def test_scoring_and_building_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import eval_gen, scope.longgenbench.build, scope.longgenbench.instructions;"
        "import scope.evaluation.report;"
        "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tasks_import_no_machinery() -> None:
    for file in (ROOT / "scope" / "tasks").glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if "import" in line]
        for part in ("harness", "cache", "kernels", "attention", "evaluation", "longgenbench"):
            assert not any(f"scope.{part}" in line for line in lines), (file, part)
