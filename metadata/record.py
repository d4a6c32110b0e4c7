"""The record of a finished shard, and the other objects of a stage's folder.

A stage's folder holds `000123-<digest>.parquet` (data, named by its content) and `000123.json` (its
record, which names one data file, so that two attempts cannot mix). `000123.p1.json` is a later
pass over rows that the first left out. compaction.py copies all records into few objects; scan.py
reads them back.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from clipmill.metadata.limits import PARSE_ERRORS

FAILED = ".failed.json"
MANIFEST = "manifest.json"
SEAL = '{"digest":'


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored shard of a stage: its file, its counts, and the digests it was made from."""

    shard: int
    number: int = 0  # of the pass
    data: str | None  # object name; None for a pass that found nothing to do
    size_bytes: int
    sha256: str  # of the data file
    rows: int  # of the shard
    computed: int  # rows this pass computed
    uid_sha256: str
    parents: dict[str, str]  # stage to the digest of its shard
    mask: str | None = None  # digest of the `only:` shard
    counts: dict[str, int] = field(default_factory=dict)  # rows by reason; "" if they have none
    source: dict[str, Any] | None = None  # of a root's shard
    seconds: float = 0.0
    attempts: int = 1
    page_checksums: bool = False  # of the data file: older ones have none

    @property
    def name(self) -> str:
        return record_name(self.shard, self.number)

    def to_json(self) -> str:
        """Returns its fields beside their digest, in the form of metadata/sealed.py."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return _sealed(json.dumps(fields, sort_keys=True, separators=(",", ":")))

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Parses a record; ValueError if it has changed. Older records have no digest."""
        if text.startswith(SEAL):
            fields = text[len(_sealed("")) - 1 : -1]
            if text != _sealed(fields):
                raise ValueError("not as it was stored")
            text = fields
        try:
            return _DECODER.decode(text)
        except msgspec.DecodeError:  # on NaN or a lone surrogate: a source may hold them
            return msgspec.convert(json.loads(text), cls)


_DECODER = msgspec.json.Decoder(Record)


def _sealed(fields: str) -> str:
    return f'{SEAL}"{hashlib.sha256(fields.encode()).hexdigest()[:32]}","value":{fields}}}'


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardState:
    """A finished shard as its readers see it: its files by pass, and one digest of all."""

    rows: int
    files: tuple[str, ...]
    digest: str
    mask: "ShardState | None" = None  # rows outside it read as null, `not_selected`
    source: dict[str, Any] | None = None
    # For display: the stages, each its folder and this shard's state there, whose reason `listed`
    # hides what the row holds.
    listed: tuple[tuple[Any, "ShardState"], ...] = ()


@dataclass(frozen=True)
class Failure:
    """The reason why a shard was set aside: `<shard>.failed.json`."""

    shard: int
    parents: dict[str, str]
    crashed: bool  # ended its worker each time: left alone until `--retry crashed`
    found: str
    where: str
    do: str

    @property
    def name(self) -> str:
        return f"{self.shard:06d}{FAILED}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete stage's `manifest.json`: its sizes, and the digests it was made from."""

    shards: int
    rows: int
    inputs: str
    # Of a dataset stage:
    outside: str = ""
    digest: str = ""
    outputs: tuple[tuple[str, int], ...] = ()  # name and bytes of each file in out/
    output_sha256: dict[str, str] = field(default_factory=dict)  # of each; older ones have none
    page_checksums: bool = False  # of Parquet files in out/
    seconds: float | None = None
    fingerprint: str = ""  # of the stage

    @property
    def made_of(self) -> dict[str, str]:
        """Returns the `parents` of its records."""
        return {"inputs": self.inputs, **({"outside": self.outside} if self.outside else {})}


def record_name(shard: int, number: int = 0) -> str:
    return f"{shard:06d}.json" if number == 0 else f"{shard:06d}.p{number}.json"


def parsed(name: str, text: str | bytes) -> Record | None:
    """Returns the record in an object; None if it is torn or of another name."""
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    try:
        record = Record.from_json(text)
    except (TypeError, *PARSE_ERRORS):
        return None
    return record if record.name == name else None


def data_name(shard: int, number: int, sha256: str) -> str:
    stem = f"{shard:06d}" if number == 0 else f"{shard:06d}.p{number}"
    return f"{stem}-{sha256[:16]}.parquet"


def digest_in(data: str) -> str:
    """Returns the start of a data file's SHA-256, from its name."""
    return data.rpartition("-")[2].removesuffix(".parquet")


def state_of(records: list[Record], mask: ShardState | None) -> ShardState:
    """Returns one shard's state for readers: its passes under today's mask."""
    files = [(record.data, record.sha256) for record in records]
    return state_with(files, records[0].rows, records[0].source, mask)


def state_with(
    files: list[tuple[str | None, str]],
    rows: int,
    source: dict[str, Any] | None,
    mask: ShardState | None,
) -> ShardState:
    """Returns a shard's state; `files` holds (data, SHA-256) by pass, the rest is the first's."""
    parts = [sha256 for data, sha256 in files if data]
    if mask is not None:
        parts.append(mask.digest)
    joined = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    return ShardState(
        rows=rows,
        files=tuple(data for data, _ in files if data),
        digest=joined[:32],
        mask=mask,
        source=source,
    )
