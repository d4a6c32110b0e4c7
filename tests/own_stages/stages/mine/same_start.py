"""A dedup stage in a user's own folder, with a nearness of its own."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import POSITION, REASON, REASON_TYPE, SHARD, TEXT, UID, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage

COPY_OF = Column("copy_of", pa.binary(16), "uid", "The first such row.", names="keeper")
SHARED = Column("shared_letters", pa.int32(), "letters", "With that row.", better="low")


@dataclass(frozen=True, kw_only=True)
class SameStart(DatasetStage):
    """Letters that a caption shares at its start with the first row that begins as it does.

    At least `letters`; null, as copy_of is, where there is no such row.

    Error: none.
    """

    letters: int = 10

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (COPY_OF, SHARED)
    reasons = ("no_text",)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        return {SHARED.name: (self.letters, 1000)}

    def run(self, inputs: Inputs, ctx: Context) -> None:
        begun = ctx.map_shards(self.start, inputs.rows)
        ctx.restore(ctx.map_shards(first_of_each, ctx.shuffle(begun, key="start")))

    def start(self, rows: pa.Table) -> pa.Table:
        texts = rows[TEXT.name].to_pylist()
        start = [text and text[: self.letters] for text in texts]
        return rows.append_column("start", pa.array(start, pa.string()))


def first_of_each(rows: pa.Table) -> pa.Table:
    rows = rows.sort_by([(SHARD.name, "ascending"), (POSITION.name, "ascending")])
    first: dict[str, tuple[bytes, str]] = {}
    copy_of: list[bytes | None] = []
    shared: list[int | None] = []
    for row in rows.to_pylist():
        known = first.setdefault(row["start"], (row[UID.name], row[TEXT.name]))
        is_first = row["start"] is None or known[0] == row[UID.name]
        copy_of.append(None if is_first else known[0])
        shared.append(None if is_first else same_letters(row[TEXT.name], known[1]))
    reason = [None if text else "no_text" for text in rows[TEXT.name].to_pylist()]
    return pa.table(
        {
            **{column.name: rows[column.name] for column in (UID, SHARD, POSITION)},
            COPY_OF.name: pa.array(copy_of, COPY_OF.dtype),
            SHARED.name: pa.array(shared, SHARED.dtype),
            REASON.name: pa.array(reason, pa.string()).cast(REASON_TYPE),
        }
    )


def same_letters(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
