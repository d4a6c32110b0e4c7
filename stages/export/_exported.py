"""A Parquet export as an export reads a pool: each of its files is a shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places, unplaced
from clipmill.metadata.schema import KEEP, POSITION, REPEATS, SHARD, TEXT, TEXTS, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Mask, Shards
from clipmill.pipeline.errors import StageError
from clipmill.stages.export._texts import as_text_list, first_texts
from clipmill.stages.ops.exports import summary_of

# Shapes: N rows of a file.


@dataclass(frozen=True)
class Exported:
    """Rows of an export, with their places in the pool; `keep` and `repeats` are the mask's.

    Implements `Shards`. `text` is the first of a row's `texts`.
    """

    data: str
    files: tuple[tuple[str, int], ...]  # name and rows
    columns: tuple[str, ...]
    mask: Mask | None

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, index: int) -> int:
        return self.files[index][1]

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        file, _ = self.files[index]
        outputs = Outputs(Storage(self.data))
        place_N2 = read_places(outputs, places_name(file))
        times_N = self.mask.times(file) if self.mask else None
        start = 0
        with outputs.parquet(file) as parquet:
            stored = {TEXTS.name if name == TEXT.name else name for name in self.columns}
            columns = [name for name in parquet.schema_arrow.names if name in {UID.name, *stored}]
            for batch in parquet.iter_batches(batch_rows, columns=columns):
                here = slice(start, start + len(batch))
                start += len(batch)
                table = pa.Table.from_batches([batch])
                for at, column in enumerate((SHARD, POSITION)):
                    table = table.append_column(column.name, pa.array(place_N2[here, at]))
                if TEXTS.name in columns:
                    texts = as_text_list(table[TEXTS.name])
                    table = table.set_column(columns.index(TEXTS.name), TEXTS.name, texts)
                    table = table.append_column(TEXT.name, first_texts(texts))
                yield table if times_N is None else taken(table, times_N[here])

    def table(self, index: int) -> pa.Table:
        return pa.concat_tables(self.batches(index))

    def select(self, names: Iterable[str]) -> "Exported":
        return replace(self, columns=tuple(names))


def taken(table: pa.Table, times_N: np.ndarray) -> pa.Table:
    """The rows with the mask's `keep` and `repeats`."""
    if REPEATS.name in table.column_names:
        table = table.drop_columns([REPEATS.name])
    table = table.append_column(REPEATS.name, pa.array(times_N, REPEATS.dtype))
    return table.append_column(KEEP.name, pa.array(times_N > 0))


def rows_of(inputs: Inputs, columns: Iterable[str], ctx: Context) -> Shards:
    """The rows to export, with these columns: of the pool, or of another export."""
    if not inputs.data:
        return inputs.rows
    dataset = summary_of(inputs.data, ctx.worker.stage)
    files = tuple((file["file"], file["rows"]) for file in dataset["files"])
    held = tuple(name for name, _ in dataset["columns"])
    missing = sorted(set(columns) - set(held)) if files else []
    if missing:
        raise StageError(
            found=f"no column '{missing[0]}' in the export",
            where=f"stage '{ctx.worker.stage}', key `columns`",
            do=f"add it to the export's `columns`; it has {', '.join(held)}",
        )
    outputs = Outputs(Storage(inputs.data))
    for file, _ in files:
        if places_name(file) not in outputs.names:
            raise StageError(*unplaced(outputs, file))
    return Exported(inputs.data, files, held, inputs.mask)
