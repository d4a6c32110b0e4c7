"""Target vectors: in Parquet files, or in a column of an export."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tables.exports import summary_of
from clipmill.stages.ops.vectors.centroids import MARK, file_or_folder

ROWS = 4096  # vectors compared at a time
SPAN = 2**16  # rows of a file that one task compares
MODEL = MARK + "model"  # key of the model in the schema of a Parquet of vectors
EMBED_BOTH = "embed both with one model"


@dataclass(frozen=True, kw_only=True)
class TargetVectors:
    """Location of targets, as a recipe names it."""

    targets: str
    column: str
    stage: str
    target_folder: str | None  # of `targets: "stage:x"`

    def where(self, key: Literal["targets", "column"]) -> str:
        value = redacted(self.targets) if key == "targets" else self.column
        return f"stage '{self.stage}', key `{key}`: {value}"

    def at(self, file: str) -> str:
        where = self.where("targets")
        return where if where.endswith(file) else f"{where}, {file}"

    @property
    def place(self) -> tuple[Storage, str | None]:
        return file_or_folder(self.targets, self.where("targets"))

    def exported(self, folder: str) -> list[dict[str, Any]]:
        """Returns pieces of the files of an export: `task`, `file`, `start`, and a digest."""
        dataset = summary_of(folder, self.stage, "targets")
        if self.column not in (columns := [name for name, _ in dataset["columns"]]):
            found = f"no column '{self.column}' in the export"
            do = f"add it to the export's `columns`; it has {', '.join(columns)}"
            raise StageError(found, self.where("targets"), do)
        files = [{"task": self.targets.removeprefix("stage:"), **file} for file in dataset["files"]]
        return [item for file in files for item in spans(file, file["rows"])]

    def model_of(self, items: list[dict[str, Any]], centroids: str | None, inputs: Inputs) -> str:
        """Returns the model of all, or ""; StageError if two differ, or a file names none."""
        named = {
            f"column '{self.column}'": inputs.model_of.get(self.column),
            "`centroids`": centroids,
            "`model`": inputs.own_model,
            "`targets`": inputs.target_model_of.get(self.column),
        }
        if self.target_folder is None:
            for file in dict.fromkeys(item["file"] for item in items if "file" in item):
                with self.opened(file) as parquet:
                    marks = parquet.schema_arrow.metadata or {}
                if MODEL.encode() not in marks:
                    found = f"{file} does not say which model made its '{self.column}'"
                    do = f"write {MODEL} into the metadata of its schema"
                    raise StageError(found, self.where("targets"), do)
                named[f"`targets`: {file}"] = marks[MODEL.encode()].decode()
        known = [(what, model) for what, model in named.items() if model]
        for what, model in known[1:]:
            if model != known[0][1]:
                found = f"{what} is of model '{model}', and {known[0][0]} of '{known[0][1]}'"
                raise StageError(found, self.where("targets"), EMBED_BOTH)
        return known[0][1] if known else ""

    def read(self, file: str, start: int) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
        """Yields vectors of a piece and their rows, some at a time; nulls are skipped."""
        stop = start + SPAN
        with self.opened(file) as parquet:
            whole = parquet.metadata
            rows = (whole.row_group(group).num_rows for group in range(whole.num_row_groups))
            first = np.cumsum([0, *rows])
            groups = [g for g, row in enumerate(first[:-1]) if row < stop and first[g + 1] > start]
            row = int(first[groups[0]]) if groups else 0
            for batch in parquet.iter_batches(ROWS, row_groups=groups, columns=[self.column]):
                row_N = np.arange(row, row + len(batch))
                here_N = (row_N >= start) & (row_N < stop)
                here_N &= batch[self.column].is_valid().to_numpy(zero_copy_only=False)
                yield batch[self.column].filter(pa.array(here_N)), row_N[here_N]
                row += len(batch)

    @contextmanager
    def opened(self, file: str) -> Iterator[pq.ParquetFile]:
        """Opens a file of vectors; StageError if it cannot be read."""
        if self.target_folder is not None:
            with Outputs(Storage(self.target_folder)).parquet(file) as parquet:
                yield parquet
            return
        try:
            with self.place[0].open(file) as source:
                yield pq.ParquetFile(source)
        except (pa.ArrowException, OSError) as error:
            found = f"no Parquet that can be read: {error}"
            do = "name a Parquet of vectors, or write it again"
            raise StageError(found, self.at(file), do) from None


def spans(file: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Cuts a file into pieces of SPAN rows, so that several workers compare it."""
    return [{**file, "start": start} for start in range(0, max(rows, 1), SPAN)]
