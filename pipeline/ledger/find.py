"""Rows by their uid: the uid column of the roots is read."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from metadata.parquet_file import read_file
from metadata.schema import UID
from pipeline.errors import RecipeError
from pipeline.ledger.stored import Place
from pipeline.run_folder.state import RunState


class UidRow(NamedTuple):
    """A row of a root, and its uid."""

    root: str
    place: Place
    uid: bytes


def rows_of(state: RunState, uid: str) -> list[UidRow]:
    """Every row of the one sample whose uid is, or begins with, these hex digits.

    RecipeError where they are no uid, or the beginning of none or of several.
    """
    digits = uid.strip().lower().replace("-", "")
    if not re.fullmatch("[0-9a-f]{8,32}", digits):
        raise RecipeError(
            f"'{uid}' is no uid", "the arguments", "give 32 hex digits, or the first 8 or more"
        )
    low, high = (pa.scalar(bytes.fromhex(digits.ljust(32, end)), pa.binary()) for end in "0f")
    roots = [name for name, stage in state.stages.items() if stage.planned.is_root]
    rows = list(
        _scan(
            state, roots, lambda uid: pc.and_(pc.greater_equal(uid, low), pc.less_equal(uid, high))
        )
    )
    if not rows:
        raise RecipeError(
            f"no sample {uid}", str(state.run), "check the uid; `funnel` shows which pool this is"
        )
    if len({row.uid for row in rows}) > 1:
        uids = ", ".join(row.uid.hex() for row in rows[:5])
        raise RecipeError(
            f"{len(rows)} samples begin with {uid}: {uids}", str(state.run), "give more digits"
        )
    return rows


def places_of(state: RunState, root: str, uids: set[bytes], besides: Place) -> dict[bytes, Place]:
    """A row of each uid, another one than `besides` where there is one."""
    wanted, places = pa.array(sorted(uids), pa.binary()), dict.fromkeys(uids, besides)
    for row in _scan(state, [root], partial(pc.is_in, value_set=wanted)):
        if places[row.uid] == besides != row.place:
            places[row.uid] = row.place
            if besides not in places.values():
                break
    return places


def _scan(
    state: RunState, roots: list[str], is_wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> Iterator[UidRow]:
    """The rows with such a uid, in the order of the roots' shards."""
    for name in roots:
        stage = state.stages[name]
        for shard, shard_state in sorted(stage.shards.items()):
            start = 0
            for table in read_file(stage.folder, shard_state.files[0], [UID.name], 1 << 20):
                column = table[UID.name].cast(pa.binary())
                hit = is_wanted(column)
                if pc.any(hit).as_py():
                    for index in pc.indices_nonzero(hit).to_pylist():
                        yield UidRow(name, (shard, start + index), column[index].as_py())
                start += len(table)
