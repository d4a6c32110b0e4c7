"""Leaves out the rows that a user's lists name: by link, host, digest or perceptual hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.schema import (
    IDENTITY,
    KEEP,
    LISTED,
    PDQ,
    PDQ_QUALITY,
    PHASH,
    REASON,
    SHA256,
    URL,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import DatasetStage, later
from clipmill.stages.ops.tables.blocklists import KINDS, WORDS, Lists, opened, words_of
from clipmill.stages.ops.tables.rows import DROPPED, added, dropped_before, put_json
from clipmill.stages.select._judged import first_of, judged_rows

FILE = "lists.json"
LEAST_QUALITY = 50  # of a PDQ hash: Meta advises to discard others


@dataclass(frozen=True, kw_only=True)
class Unlisted(DatasetStage):
    """Keep decision of each row that is on none of the lists.

    Links, hosts and digests of links need no download: put it before, and `only: NAME` into the
    stage that downloads. Digests are also those of pictures, by `sha256` of the pool or a download.
    Nothing that is stored says which list has a row, or which entry: the reason is `listed`, of a
    row that an earlier select dropped too, and out/lists.json counts the rows of each list. `why`,
    `show`, pages and exports of lost rows show no text, link or picture of a listed row.

    Source: Re-LAION-5B (2024), for lists before any link is opened; PDQ (Meta 2019), for 31 of 256
        bits, a share that other hashes get too, and for the quality below which none is compared.
    Error: a host's entry takes all names below it. By chance, 2^-64 an entry; 7 of 64 bits by
        chance, 10^-10. Of pictures MD5 is compared by download.images alone, as it is stored
        nowhere. A union shows rows that were listed before it: list after the union. export.map has
        dropped rows that have an embedding: embed with `only: NAME`.
    Example: {after: [ingest.datacomp], lists: {links: links.txt}}
    """

    lists: Lists  # files of lists, by kind
    max_distance: Annotated[int, Meta(ge=0, le=16)] = 7  # most bits that a perceptual hash differs
    max_pdq_distance: Annotated[int, Meta(ge=0, le=64)] = later(31)  # most bits that a PDQ differs

    version = 2
    determinism = "exact"
    optional_reads = (KEEP, URL, SHA256)  # of the last two `digests` needs either
    writes = (KEEP,)
    reasons = (LISTED, DROPPED)

    def __post_init__(self) -> None:
        if not self.lists.paths:
            do = "name a file: links, hosts, digests, phashes or pdq"
            raise RecipeError("no list is named, so nothing would be left out", "key `lists`", do)

    @property
    def reads(self) -> tuple[Column, ...]:
        by_link = (URL,) if self.lists.links or self.lists.hosts else ()
        by_look = (PHASH,) if self.lists.phashes else ()
        return (*by_link, *by_look, *((PDQ, PDQ_QUALITY) if self.lists.pdq else ()))

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        if self.lists.digests and not {URL.name, SHA256.name} & types.keys():
            found = "no stage before it has `url` or `sha256` to compare digests with"
            raise RecipeError(found, "key `lists.digests`", "list after a download")

    def outside(self) -> str:
        """Returns a digest of the lists' bytes."""
        return digest(self.lists.sha256())

    def look(self) -> None:
        self.lists.look()

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sha256 = tuple(self.lists.sha256().values())
        opened(self.lists, sha256)  # so that a bad one stops the stage, before any worker
        found = ctx.map_shards(partial(found_on, settings=self, sha256=sha256), inputs.rows)
        counts = ctx.reduce(counted, found, added)
        ctx.map(partial(put_json, FILE), [{name: int(count[0]) for name, count in counts.items()}])
        ctx.restore(ctx.map_shards(judged, found))


def found_on(rows: pa.Table, settings: Unlisted, sha256: tuple[str, ...]) -> pa.Table:
    """Returns the rows' identity, their reason, and by list if it has them."""
    blocked = opened(settings.lists, sha256)
    masks = {name: np.zeros(len(rows), bool) for name in settings.lists.paths}
    if URL.name in rows.column_names:
        masks |= blocked.links(rows[URL.name].to_pylist())
    if SHA256.name in rows.column_names and "digests" in masks:
        masks["digests"] |= blocked.digests(rows[SHA256.name].to_pylist())
    if settings.lists.phashes:
        code = rows[PHASH.name]
        code_N1 = code.fill_null(0).to_numpy()[:, None]
        near_N = blocked.near("phashes", code_N1, settings.max_distance)
        masks["phashes"] = near_N & code.is_valid().to_numpy()
    if settings.lists.pdq:
        pdq = pc.utf8_lower(rows[PDQ.name])
        is_hash = pc.match_substring_regex(pdq, KINDS["pdq"].pattern)
        counts = pc.and_(is_hash, pc.greater_equal(rows[PDQ_QUALITY.name], LEAST_QUALITY))
        counts_N = counts.fill_null(False).to_numpy()
        code_NW = words_of("".join(pdq.filter(pa.array(counts_N)).to_pylist()), WORDS["pdq"])
        masks["pdq"][counts_N] = blocked.near("pdq", code_NW, settings.max_pdq_distance)
    listed = pa.array(np.any([*masks.values()], axis=0))
    reason = first_of({LISTED: listed, DROPPED: dropped_before(rows)})  # what is listed is hidden
    found = {name: pa.array(mask) for name, mask in masks.items()}
    return pa.table({**{n: rows[n] for n in IDENTITY}, REASON.name: reason, **found})


def counted(found: pa.Table) -> State:
    """Counts the listed rows, and those of each list."""
    names = found.column_names[len(IDENTITY) + 1 :]
    rows = pc.sum(pc.equal(found[REASON.name], LISTED)).as_py() or 0
    counts = {name: found[name].to_numpy().sum() for name in names}
    return {name: np.array([count], np.int64) for name, count in {"rows": rows, **counts}.items()}


def judged(found: pa.Table) -> pa.Table:
    return judged_rows(found, found[REASON.name], {})
