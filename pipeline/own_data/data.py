"""A description of a user's data, with the ingest stage and settings that read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEWEST, MOST, SHARDS = 100, 10_000, 64  # rows of a shard, and the wanted number of shards


@dataclass(frozen=True, kw_only=True)
class Data:
    """A user's data: their form, their columns, and the ingest stage that reads them."""

    path: str
    what: str  # description: `CSV of links and captions`
    uses: str  # the ingest stage
    settings: dict[str, Any]  # of that stage, without its path
    rows: int | None  # None if only reading all data tells
    is_exact: bool = True  # else `rows` is an estimate
    columns: dict[str, str] = field(default_factory=dict)  # role, as shown, to column
    scores: tuple[str, ...] = ()
    is_linked: bool = False  # pictures are fetched from links
    has_captions: bool = True
    has_paths: bool = False  # pictures are files that a column names
    embedding_width: int | None = None
    aside: Mapping[str, int] = field(default_factory=dict)  # unused files, by suffix
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> dict[str, Any]:
        """Returns the keys of the ingest stage in a recipe."""
        return {"path": self.path, **self.settings}


def shard_rows(rows: int) -> int:
    """Returns rows per shard for about 64 shards, which keep all workers busy."""
    return min(MOST, max(FEWEST, -(-rows // SHARDS)))
