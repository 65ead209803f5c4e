"""A job beside its result folder: what is there, and what is left to do."""

from dataclasses import dataclass, replace
from typing import Any

from scope.errors import ScopeError
from scope.harness.data import Example, file_hash, load_examples, select_rows
from scope.harness.jobs import Job
from scope.harness.models import Models
from scope.harness.results import HASH, ResultFile, RunFile, TextKey


@dataclass(frozen=True)
class Found:
    """What a result folder holds of a job, before anything is done.

    Attributes:
        job: what is to be run.
        examples: all of the data, those outside of a slice too: the batch and its slots are made
            for all of them.
        run: what run.json holds.
        rows: every text that is done, line by line.
    """

    job: Job
    examples: list[Example]
    run: dict[str, Any]
    rows: list[TextKey]

    @classmethod
    def look(cls, job: Job, examples: list[Example]) -> "Found":
        """Look into the job's folder.

        Raises:
            ScopeError: files that cannot be read, or of another configuration.
        """
        run = run_file_of(job).open(config_of(job))
        all_rows = select_rows(replace(job, max_num_examples=None))
        rows = ResultFile(job.result_file).done([index for index, _ in all_rows])
        return cls(job, examples, run, rows)

    @property
    def run_file(self) -> RunFile:
        """Where `run` goes."""
        return run_file_of(self.job)

    @property
    def result_file(self) -> ResultFile:
        """Where texts go."""
        return ResultFile(self.job.result_file)

    @property
    def wanted(self) -> list[Example]:
        """The examples that the job asks for."""
        return self.examples if self.job.rows is None else self.examples[slice(*self.job.rows)]

    @property
    def missing(self) -> bool:
        """Whether an example that is asked for has to be generated."""
        return bool(self.left)

    @property
    def left(self) -> set[TextKey]:
        """The texts that are asked for and not there."""
        return {key for e in self.wanted for key in self.texts_of(e)} - set(self.rows)

    def texts_of(self, example: Example) -> list[TextKey]:
        """The texts after an example's prompt."""
        return [(example.index, number) for number in range(self.job.num_samples)]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (
            not self.missing
            and self.rows == sorted(self.rows)
            and sorted({index for index, _ in self.rows}) == self.run.get("data", {}).get("rows")
            and "warnings" in self.run
            and "mean_prompt_tokens" in self.run.get("metrics", {})
            and not self.to_compare
        )

    @property
    def to_compare(self) -> bool:
        """Whether the closeness to the full cache is still to be measured."""
        measured = self.run.get("metrics", {}).get("agreement", {}).get("compared_with")
        return self.job.compare_with is not None and (
            self.missing or measured != str(self.job.compare_with)
        )

    def reference_texts(self) -> list[list[int]] | None:
        """What the full cache wrote after each prompt, where that is to be compared.

        Raises:
            ScopeError: if it is not there, or another file.
        """
        if not self.to_compare:
            return None
        path = self.job.compare_with
        if not path.is_file():
            raise ScopeError(f"--compare_with {path}: no such file")
        try:
            records = {
                record["index"]: record
                for record in ResultFile(path).records()
                if record.get("sample", 0) == 0
            }
            return [records[example.index]["generated_ids"] for example in self.examples]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ScopeError(
                f"--compare_with {path}: expected a finished result file of this program on the "
                "same data file"
            ) from None


def run_file_of(job: Job) -> RunFile:
    """The run.json in the job's folder."""
    return RunFile(job.folder / "run.json")


def examples_of(job: Job, models: Models) -> list[Example]:
    """The job's examples, of which each prompt fits into the model's context."""
    context_length = models.config(job.model_path).max_position_embeddings
    return load_examples(job, models.tokenizer(job.model_path), context_length)


def config_of(job: Job) -> dict[str, Any]:
    """The job's configuration, with the content of its files."""
    config = job.config() | {"data_sha256": file_hash(job.data_file)}
    if job.instruction_file is not None:
        config["instruction_sha256"] = file_hash(job.instruction_file)
    hashes = {name + HASH: file_hash(file) for name, file in job.compression.files.items()}
    return config | hashes
