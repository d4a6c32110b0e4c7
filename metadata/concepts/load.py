"""A concept list: its rows, its file, and the digest that names it.

`concept_ids` are positions in a list. The digest covers entries and languages in order, which is
all an id depends on: counts and sources may change, and the published JSON and a Parquet file of
the same entries have the same digest.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.metadata.keys import redacted
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.storage import folder_of, open_uri

SCHEMA = pa.schema(
    [
        ("entry", pa.string()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("count", pa.int64()),  # in the corpus, or page views; null where the source has no counts
        ("language", pa.dictionary(pa.int32(), pa.string())),  # null: any language
    ]
)
PUBLISHED = "published"  # source of entries whose list names none
MAX_ENTRY_CHARS = 1024  # MetaCLIP 2 leaves out entries longer than 256
DIGEST = b"concepts_digest"


class ConceptListError(ValueError):
    """A concept list that cannot be used; says why, and names the entries."""


@dataclass(frozen=True)
class ConceptList:
    """Entries in the order of their ids, each once per language."""

    table: pa.Table  # of SCHEMA, in one chunk
    digest: str  # 32 hex digits
    dropped: dict[str, int]  # `blank` and `repeated` to number of entries left out

    def __len__(self) -> int:
        return len(self.table)

    @property
    def entries(self) -> pa.StringArray:
        return self.table["entry"].chunk(0)

    def by_language(self) -> Iterator[tuple[str | None, pa.Int32Array]]:
        """Yields each language with the ids of its entries, ascending."""
        languages = self.table["language"].chunk(0)
        codes = languages.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        for code in np.unique(codes).tolist():
            name = None if code < 0 else languages.dictionary[code].as_py()
            yield name, pa.array(np.flatnonzero(codes == code), pa.int32())


def concept_list(table: pa.Table) -> ConceptList:
    """Makes a list of rows, without blank and repeated entries, which no caption could match.

    Raises ConceptListError if an entry is too long, or none is left.
    """
    rows = _in_one_chunk(table.select(SCHEMA.names).cast(SCHEMA))
    _check_lengths(rows["entry"])
    blank = pc.equal(pc.utf8_trim_whitespace(rows["entry"]), "").fill_null(True)
    named = rows.filter(pc.invert(blank))
    numbered = named.append_column("row", pa.array(np.arange(len(named))))
    first = numbered.group_by(["entry", "language"], use_threads=False).aggregate([("row", "min")])
    whole = _in_one_chunk(named.take(np.sort(first["row_min"])))
    if not len(whole):
        raise ConceptListError("it has no entry")
    dropped = {"blank": len(rows) - len(named), "repeated": len(named) - len(whole)}
    return ConceptList(whole, digest_of(whole), {why: n for why, n in dropped.items() if n})


def of_entries(
    entries: list[str], source: str = PUBLISHED, language: str | None = None
) -> pa.Table:
    """Returns rows of SCHEMA for entries without counts."""
    rows = len(entries)
    return pa.table([entries, [source] * rows, [None] * rows, [language] * rows], schema=SCHEMA)


def load(uri: str) -> ConceptList:
    """Reads a list from Parquet as `save` writes it, or from JSON as MetaCLIP publishes it.

    Raises FileNotFoundError if there is no file, ConceptListError if it holds no list.
    """
    filesystem, path = open_uri(uri)
    with filesystem.open_input_file(path) as file:
        data = file.read()
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(pa.BufferReader(data), use_threads=False)
            concepts = concept_list(table)
            stated = (table.schema.metadata or {}).get(DIGEST, concepts.digest.encode()).decode()
            if stated != concepts.digest:
                raise ConceptListError(f"its entries are not those of its digest {stated}")
            return concepts
        entries: Any = json.loads(data)
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ConceptListError("it is neither Parquet nor a JSON list of strings")
        return concept_list(of_entries(entries))
    except (json.JSONDecodeError, UnicodeDecodeError):
        what = "neither Parquet nor JSON, so no list of concepts"
        raise ConceptListError(f"{redacted(uri)}: {what}") from None
    except (pa.ArrowException, KeyError, *PARSE_ERRORS) as error:
        raise ConceptListError(f"{redacted(uri)}: {error}") from None


def save(concepts: ConceptList, uri: str) -> None:
    """Writes the list as Parquet with its digest: whole, or not at all."""
    sink = pa.BufferOutputStream()
    table = concepts.table.replace_schema_metadata({DIGEST: concepts.digest.encode()})
    pq.write_table(table, sink, compression="zstd")
    folder, name = folder_of(uri)
    folder.put(name, sink.getvalue().to_pybytes(), point="rename")


def digest_of(table: pa.Table) -> str:
    """Returns the first 128 bits of the SHA-256 of entries and languages, in order."""
    hashed = hashlib.sha256()
    for name in ("entry", "language"):
        column = table[name].cast(pa.string()).combine_chunks()
        lengths = pc.binary_length(column).fill_null(-1)  # null differs from ""
        hashed.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        hashed.update("".join(filter(None, column.to_pylist())).encode())
    return hashed.hexdigest()[:32]


def _in_one_chunk(table: pa.Table) -> pa.Table:
    whole = table.unify_dictionaries().combine_chunks()
    return whole if whole.num_rows else SCHEMA.empty_table().combine_chunks()


def _check_lengths(entry: pa.ChunkedArray) -> None:
    too_long = pc.greater(pc.utf8_length(entry), MAX_ENTRY_CHARS).fill_null(False)
    places = np.flatnonzero(too_long)
    if len(places):
        shown = ", ".join(f"number {place} {entry[place].as_py()[:40]!r}" for place in places[:3])
        raise ConceptListError(
            f"{len(places):,} entries are longer than {MAX_ENTRY_CHARS:,} characters: {shown}"
        )
