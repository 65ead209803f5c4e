"""All scored texts as one table, a row each, for whatever reads Parquet."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scope.errors import ScopeError
from scope.evaluation.evaluate import Row


def write_parquet(rows: Iterable[Row], path: Path) -> Path:
    """Write the texts of all rows of a table.

    Raises:
        ScopeError: where the file cannot be written.
    """
    texts = [
        {
            "configuration": row.name,
            "model": row.result.model,
            "dataset": row.result.dataset,
            "file": str(row.result.path),
            "index": record.index,
            "sample": record.sample,
            "accuracy": accuracy,
            "generated_tokens": record.generated_tokens,
            "stopped": record.stopped,
            "questions": list(record.questions),
            "answers": list(record.answers),
            "pred": record.pred,
        }
        for row in rows
        for record, accuracy in zip(row.result.records, row.score.text_accuracies, strict=True)
    ]
    try:
        pq.write_table(pa.Table.from_pylist(texts), path)
    except OSError as error:
        raise ScopeError(f"{path}: cannot be written ({error})") from None
    return path
