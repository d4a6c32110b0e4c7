"""Finds samples by a uid, a link, or a caption or a part of it.

A word that can be a uid is looked up as one first; if it is found, no other column is opened. All
other words are matched with links and captions in one pass over the shards: equal texts come before
texts that begin with the word, and those before texts that contain it. Only equality heeds case.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import TEXT, UID, URL
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.rows.uids import MOST_LISTED, UidRow, digits_of, rows_by_digits
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.terminal import cut, one_line

BATCH_ROWS = 65_536
SHORTEST = 3  # characters of a word that is looked for inside texts
SAID = 60  # characters of a caption in an error's list
WAYS = ("is", "begins with", "holds")


def samples(state: RunState, words: Sequence[str]) -> list[list[UidRow]]:
    """Returns the rows of the one sample that each word names, in the order of the words.

    RecipeError if a word names no sample, or several.
    """
    digits = {word: digits for word in words if (digits := digits_of(word))}
    by_digits = rows_by_digits(state, list(dict.fromkeys(digits.values())))
    rows_of = {word: by_digits[uid] for word, uid in digits.items() if by_digits[uid]}
    others = [word for word in dict.fromkeys(words) if word not in rows_of]
    uids = _by_text(state, others)
    rows = rows_by_digits(state, list(dict.fromkeys(uids.values())))
    rows_of |= {word: rows[uid] for word, uid in uids.items()}
    return [rows_of[word] for word in words]


@dataclass
class _Matches:
    """The number of rows that match a word in one way; uid and text of the first samples."""

    rows: int = 0
    few: dict[bytes, str] = field(default_factory=dict)


def _by_text(state: RunState, words: Sequence[str]) -> dict[str, str]:
    """Returns the uid in hex that each word names by link or caption."""
    matches = {word: tuple(_Matches() for _ in WAYS) for word in words}
    for root in _searched(state) if words else ():
        written = {column.name for column in state.plan.stages[root].stage.writes}
        bound = {name: (root, name) for name in (TEXT.name, URL.name) if name in written}
        shards = stored(state, root, bound)
        for index in range(len(shards) if bound else 0):
            for batch in shards.batches(index, BATCH_ROWS):
                for word, ways in matches.items():
                    _match(batch, list(bound), word, ways)
    return {word: _only(state, word, ways) for word, ways in matches.items()}


def _searched(state: RunState) -> list[str]:
    """Returns the roots with rows, except those that a union includes."""
    roots = {name: stage for name, stage in state.stages.items() if stage.planned.is_root}
    included = {
        state.plan.stages[parent].root
        for stage in roots.values()
        if stage.complete
        for parent in stage.planned.parents
    }
    return [name for name, stage in roots.items() if stage.shards and name not in included]


def _match(batch: pa.Table, columns: Sequence[str], word: str, ways: Sequence[_Matches]) -> None:
    """Counts the rows of a batch that match a word, by way."""
    if not word.strip():
        return
    tests: list[Callable[[pa.ChunkedArray], pa.ChunkedArray]] = [
        lambda text: pc.equal(text, word),
        lambda text: pc.starts_with(text, word, ignore_case=True),
        lambda text: pc.match_substring(text, word, ignore_case=True),
    ]
    for way, matches in zip(ways, tests if len(word) >= SHORTEST else tests[:1], strict=False):
        hits = [pc.fill_null(matches(batch[name]), False) for name in columns]
        rows = batch.filter(reduce(pc.or_, hits))
        way.rows += len(rows)
        for row in rows.select([UID.name, *columns]).to_pylist() if len(rows) else ():
            if len(way.few) > MOST_LISTED:
                break
            way.few.setdefault(row[UID.name], row.get(TEXT.name) or row.get(URL.name) or "")


def _only(state: RunState, word: str, ways: Sequence[_Matches]) -> str:
    for verb, way in zip(WAYS, ways, strict=True):
        if len(way.few) == 1:
            (uid,) = way.few
            return uid.hex()
        if way.few:
            first = list(way.few.items())[:MOST_LISTED]
            listed = [f"\n    {uid.hex()}  {cut(one_line(text), SAID)}" for uid, text in first]
            more = "\n    …" if len(way.few) > MOST_LISTED else ""
            raise RecipeError(
                f"the link or caption of {way.rows:,} rows {verb} '{word}':{''.join(listed)}{more}",
                str(state.run),
                "give a uid of the list, or more of the caption",
            )
    raise RecipeError(
        f"no sample has the uid, link or caption '{word}'",
        str(state.run),
        "check it; `clipmill show STAGE --run …` lists rows",
    )
