"""Data as a recipe can read them: what they are, and the settings of the stage that reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEWEST, MOST, SHARDS = 100, 10_000, 64  # rows of a shard, and how many shards there should be


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data as a recipe can read them."""

    path: str
    what: str  # in words: `CSV of links and captions`
    uses: str  # the ingest stage
    settings: dict[str, Any]  # of that stage, its path apart
    rows: int | None  # None where only reading tells
    is_exact: bool = True  # else `rows` is an estimate
    columns: dict[str, str] = field(default_factory=dict)  # role to column, in words
    scores: tuple[str, ...] = ()
    is_linked: bool = False  # pictures are at links, and are fetched
    has_captions: bool = True
    embedding_width: int | None = None
    aside: Mapping[str, int] = field(default_factory=dict)  # files of no use, by suffix
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of the ingest stage in a recipe."""
        return {"path": self.path, **self.settings}


def shard_rows(rows: int) -> int:
    """Rows of a shard, so that some 64 shards keep all workers busy."""
    return min(MOST, max(FEWEST, -(-rows // SHARDS)))
