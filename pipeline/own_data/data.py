"""A description of a user's data, with the ingest stage that reads them; the open question."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipmill.pipeline.errors import RecipeError

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


class UnsureError(RecipeError):
    """An open question: `ask` names it (`caption`); `candidates` maps answers to examples."""

    def __init__(self, ask: str, candidates: Mapping[str, str], where: str, do: str) -> None:
        named = ", ".join(f"{name} ({text})" if text else name for name, text in candidates.items())
        super().__init__(f"{len(candidates)} may be the {ask}: {named}", where, do)
        self.ask = ask
        self.candidates = dict(candidates)
