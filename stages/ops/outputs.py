"""Files in out/ that one piece of work leaves whole: a table, a text."""

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.dataset import Task


def put_table(name: str, table: pa.Table, task: Task) -> None:
    """Stores out/<name>, a Parquet file."""
    path = task.worker.scratch / name
    pq.write_table(table, path, write_page_checksum=task.page_checksums)
    task.put_file(name, path)


def put_text(name: str, text: str, task: Task) -> None:
    """Stores out/<name>, in UTF-8."""
    path = task.worker.scratch / name
    path.write_text(text, encoding="utf-8")
    task.put_file(name, path)
