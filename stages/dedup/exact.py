"""Finds equal rows across the whole pool: by image bytes, pixels, link, caption or columns."""

import hashlib
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import DUPLICATE_OF, IMAGE, REASON, SHA256, TEXT, UID, URL, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty
from clipmill.stages.ops.tables.keeper import PREFERENCE, KeepsBest, best_first, preference
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before, with_reason

# Column to compare, and reasons: for a missing value, and for a value that gives no key.
READS = {
    "bytes": (SHA256, ("no_sha256",)),
    "pixels": (IMAGE, ("no_image", "undecodable")),
    "url": (URL, ("no_url", "empty_url")),
    "caption": (TEXT, ("no_text", "empty_text")),
}


@dataclass(frozen=True, kw_only=True)
class ExactDuplicate(KeepsBest):
    """Uid of the equal row that stays; null for that row itself, and without a value to compare.

    `by: pixels` compares the decoded images (upright, on white), `url` links in RFC 3986's normal
    form, `caption` texts in NFKC, lower case and with single spaces; `columns` instead compares the
    values of all the columns it names, none of them null or NaN (in a list, both equal themselves).

    Source: none needed; equal SHA-256 is taken as equal bytes, 128 bits of BLAKE2 as equal pixels.
    Error: keeps the least uid of each set without `keep`, which is the best sample by no score.
    If a uid repeats with equal bytes, the first in the pool's order stays and the others name their
    own uid.
    Example: {after: [ingest.datacomp]}
    """

    # what to compare: the stored bytes, the decoded pixels, the link, or the caption
    by: Literal["bytes", "pixels", "url", "caption"] = "bytes"
    columns: tuple[NonEmpty, ...] = ()  # compare the values of these instead

    version = 3
    writes = (DUPLICATE_OF,)

    def __post_init__(self) -> None:
        if self.columns and self.by != "bytes":
            raise RecipeError(
                f"`by: {self.by}` and `columns` are two ways to compare",
                "key `columns`",
                "leave one of them out",
            )

    @property
    def reads(self) -> tuple[Column | str, ...]:
        compared = self.columns or (READS[self.by][0],)
        return (*compared, *self.deciding)

    @property
    def reasons(self) -> tuple[str, ...]:
        return DROPPED, *(("no_value",) if self.columns else READS[self.by][1])

    def run(self, inputs: Inputs, ctx: Context) -> None:
        rows = ctx.map_shards(partial(with_key, self), inputs.rows)
        ctx.restore(ctx.map_shards(name_keeper, ctx.shuffle(rows, key="key")))  # equal rows meet


def with_key(stage: ExactDuplicate, shard: pa.Table) -> pa.Table:
    """Returns the rows' identity, the value they are compared by or a reason, and preference."""
    if stage.columns:
        key = together([shard[name].combine_chunks() for name in stage.columns])
        absent = key.is_null()
    else:
        value = shard[READS[stage.by][0].name]
        key, absent = KEYS[stage.by](value), value.is_null()
    undefined = pc.make_struct(dropped_before(shard), absent, key.is_null())
    reason = pc.case_when(undefined, DROPPED, stage.reasons[1], stage.reasons[-1])
    key = pc.if_else(reason.is_null(), key, None)
    made = {"key": key, PREFERENCE.name: preference(stage.keep, shard)}
    return with_reason(shard, made, reason)


def together(values: list[pa.Array]) -> pa.StructArray:
    """Returns one value per row from all columns; null if any of them is null or NaN."""
    missing_N = np.any([value.is_null(nan_is_null=True) for value in values], axis=0)
    names = [str(number) for number in range(len(values))]
    return pa.StructArray.from_arrays(values, names, mask=pa.array(missing_N))


def pixel_digests(images: pa.ChunkedArray) -> pa.Array:
    """Returns 128 bits of each image's size and pixels; null if it cannot be decoded."""
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.opened import ImageError

    def digest(body: bytes | None) -> bytes | None:
        try:
            rgb = decode(body or b"")
        except ImageError:
            return None
        return hashlib.blake2b(repr(rgb.shape).encode() + rgb.tobytes(), digest_size=16).digest()

    return pa.array((digest(body.as_py()) for body in images), pa.binary(16))  # one decoded at once


def caption_keys(texts: pa.ChunkedArray) -> pa.Array:
    from clipmill.stages.dedup import _plain  # polars: not while a recipe is planned

    return _plain.caption_keys(texts)


def name_keeper(partition: pa.Table) -> pa.Table:
    """Returns duplicate_of and reason of every row; no order of rows or partitions matters."""
    import polars as pl

    rows = pl.DataFrame(partition.select([UID.name, "key"])).with_row_index("row")
    shared = rows["key"].is_duplicated() & rows["key"].is_not_null()  # others have no equal
    order = best_first(partition.filter(shared.to_arrow()))
    rows = rows.filter(shared)
    first = rows[order].unique("key", keep="first", maintain_order=True)
    keeper = first.select("key", keeper=UID.name, keeper_row="row")
    out = rows.join(keeper, on="key", maintain_order="left").filter(
        pl.col("row") != pl.col("keeper_row")
    )
    place = np.full(len(partition), -1)
    place[out["row"].to_numpy()] = np.arange(len(out))
    named = out["keeper"].to_arrow().cast(pa.binary()).cast(DUPLICATE_OF.dtype)
    made = {DUPLICATE_OF.name: named.take(pa.array(place, mask=place < 0))}
    return with_reason(partition, made, partition[REASON.name])


UNRESERVED = string.ascii_letters + string.digits + "-._~"  # RFC 3986: %41 and A are one
ADDRESS = r"^(?<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?<user>[^/?@]*@)?(?<host>[^/?]*)(?<rest>.*)$"


def normalised(url: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns each link in normal form; null if it is null or blank.

    Source: RFC 3986, 6.2.2 and 6.2.3: scheme and host in lower case, no default port, no fragment,
    percent-encodings in upper case and only where needed, an empty path as /. White space goes.
    The query and a trailing slash stay: servers may mind them.
    """
    import polars as pl

    column = pl.DataFrame(pa.table({"url": url})).to_series().cast(pl.String)
    bare = column.str.replace_all(r"\s+", "").str.replace(r"#.*$", "")
    parts = bare.str.extract_groups(ADDRESS).struct.unnest()
    scheme, host = (pl.col(name).str.to_lowercase() for name in ("scheme", "host"))
    address = pl.concat_str(scheme, pl.lit("://"), pl.col("user").fill_null(""), host)
    address = address.str.replace(r"^(http://.*):80$", "${1}")
    address = address.str.replace(r"^(https://.*):443$", "${1}").str.strip_suffix(":")
    rest = pl.col("rest").str.replace(r"^(\?|$)", "/${1}")
    whole = parts.select(address + rest).to_series().fill_null(bare)
    spelt = whole.str.replace_many(*encodings())
    return spelt.replace("", None).to_arrow().cast(pa.large_string())


@lru_cache
def encodings() -> tuple[list[str], list[str]]:
    """Returns every spelling of a percent-encoding, and its normal form."""
    spellings, normal = [], []
    for byte in range(256):
        upper = f"%{byte:02X}"
        plain = chr(byte) if chr(byte) in UNRESERVED else upper
        for high in {upper[1], upper[1].lower()}:
            for low in {upper[2], upper[2].lower()}:
                if f"%{high}{low}" != plain:
                    spellings.append(f"%{high}{low}")
                    normal.append(plain)
    return spellings, normal


KEYS: dict[str, Callable[[pa.ChunkedArray], pa.Array]] = {
    "bytes": lambda digests: pc.if_else(pc.equal(digests, ""), None, digests),
    "pixels": pixel_digests,
    "url": normalised,
    "caption": caption_keys,
}
