"""Finds rows of the roots by uid; uid indexes narrow down the shards that are read."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.parquet_file import read_file
from clipmill.metadata.schema import UID
from clipmill.metadata.uid_index import Range, runs_of, shards_with
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.stored import Place
from clipmill.pipeline.run_folder.state import RunState, StageState

MOST_LISTED = 5  # samples listed in an error


class UidRow(NamedTuple):
    """A row of a root, and its uid."""

    root: str
    place: Place
    uid: bytes


def rows_of(state: RunState, uid: str) -> list[UidRow]:
    """Returns every row of the one sample whose uid equals or begins with these hex digits.

    RecipeError if they are no uid, or match no sample or several.
    """
    digits = digits_of(uid)
    if digits is None:
        raise RecipeError(
            f"'{uid}' is no uid", "the arguments", "give 32 hex digits, or the first 8 or more"
        )
    rows = rows_by_digits(state, [digits])[digits]
    if not rows:
        raise RecipeError(
            f"no sample {uid}", str(state.run), "check the uid; `funnel` shows which pool this is"
        )
    return rows


def digits_of(word: str) -> str | None:
    """Returns a word as the 8 to 32 first hex digits of a uid; None if it is not such digits."""
    digits = word.strip().lower().replace("-", "")
    return digits if re.fullmatch("[0-9a-f]{8,32}", digits) else None


def rows_by_digits(state: RunState, prefixes: Sequence[str]) -> dict[str, list[UidRow]]:
    """Returns the rows of the sample whose uid begins with each of these digits, in one pass; empty
    if there is none. RecipeError if several samples match."""
    ranges: dict[str, Range] = {
        digits: (bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f")))
        for digits in prefixes
    }

    def is_wanted(uid: pa.ChunkedArray) -> pa.ChunkedArray:
        between = [
            pc.and_(pc.greater_equal(uid, low), pc.less_equal(uid, high))
            for low, high in (pa.array(ends, pa.binary()) for ends in ranges.values())
        ]
        return reduce(pc.or_, between)

    rows: dict[str, list[UidRow]] = {digits: [] for digits in prefixes}
    roots = [name for name, stage in state.stages.items() if stage.planned.is_root]
    for row in _scan(state, roots, [*ranges.values()], is_wanted) if prefixes else ():
        for digits, (low, high) in ranges.items():
            if low <= row.uid <= high:
                rows[digits].append(row)
    for digits, matches in rows.items():
        uids = list(dict.fromkeys(row.uid.hex() for row in matches))
        if len(uids) > 1:
            more = ", …" if len(uids) > MOST_LISTED else ""
            raise RecipeError(
                f"{len(uids)} samples begin with {digits}: {', '.join(uids[:MOST_LISTED])}{more}",
                str(state.run),
                "give more digits",
            )
    return rows


def places_of(state: RunState, root: str, uids: set[bytes], besides: Place) -> dict[bytes, Place]:
    """Returns the place of a row of each uid that the root has, other than `besides` if there is
    one."""
    places: dict[bytes, Place] = {}
    own: dict[bytes, Place] = {}
    for row in rows_of_uids(state, root, uids):
        (own if row.place == besides else places).setdefault(row.uid, row.place)
        if len(places) == len(uids):
            break
    return own | places


def rows_of_uids(state: RunState, root: str, uids: Iterable[bytes]) -> Iterator[UidRow]:
    """Yields the rows of a root with these uids, in the order of its shards."""
    values = sorted(set(uids))
    is_wanted = partial(pc.is_in, value_set=pa.array(values, pa.binary()))
    return _scan(state, [root], [(uid, uid) for uid in values], is_wanted)


def _scan(
    state: RunState,
    roots: Sequence[str],
    ranges: Sequence[Range],
    is_wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray],
) -> Iterator[UidRow]:
    """Yields the wanted rows, whose uids lie in `ranges`, in the order of the roots' shards."""
    for name in roots if ranges else ():
        stage = state.stages[name]

        def read(shard: int, name: str = name, stage: StageState = stage) -> list[UidRow]:
            matches, start = [], 0
            for table in read_file(stage.folder, stage.shards[shard].files[0], [UID.name], 1 << 20):
                column = table[UID.name].cast(pa.binary())
                hit = is_wanted(column)
                if pc.any(hit).as_py():
                    for index in pc.indices_nonzero(hit).to_pylist():
                        matches.append(UidRow(name, (shard, start + index), column[index].as_py()))
                start += len(table)
            return matches

        for rows in ahead(state.run, read, _shards(state, stage, ranges)):
            yield from rows


def _shards(state: RunState, stage: StageState, ranges: Sequence[Range]) -> list[int]:
    """Returns the shards of a root that may have a uid in these ranges."""
    first = stage.shards.first
    columns = (first[name].to_pylist() for name in ("shard", "data", "rows"))
    runs = runs_of(zip(*columns, strict=True))
    if not runs:
        return sorted(stage.shards)
    found_by_run = ahead(state.run, lambda run: shards_with(stage.folder, run, ranges), runs)
    return [shard for shards in found_by_run for shard in shards]
