"""Columns of a pool's files: settings that name them, missing ones, and values that do not fit.

The types in the setting `extra` are written as Arrow prints them.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.schema import REASON, UID, Column
from clipmill.pipeline.dataset import Context, Task
from clipmill.pipeline.errors import CrashedError, RecipeError, ShardError, StageError
from clipmill.stages.ops.tables.parquet_rows import Source, groups_in, joined
from clipmill.stages.ops.tables.pools import Values, first_rows, fit, python

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
SHOWN = 24  # most names of columns in an error
TRIED_ROWS = 1024  # of the first file, before the others are read
MANY = 20  # values from which on a share is telling
SAME = (  # synonyms of a column's name, by letters and digits alone
    ("url", "imageurl", "imgurl", "link", "imagelink", "href", "src", "uri"),
    ("text", "caption", "captions", "texts", "alt", "alttext", "title", "description"),
    ("image", "img", "picture", "jpg", "png", "webp", "bytes", "imagebytes"),
    ("uid", "id", "key", "sampleid"),
    ("width", "originalwidth", "imagewidth", "w"),
    ("height", "originalheight", "imageheight", "h"),
    ("filename", "file", "path", "filepath", "imagepath"),
)
PASSED = "Passed through from the pool."
LISTS = {"list": pa.list_, "large_list": pa.large_list, "list_view": pa.list_view}


class SourceColumn(NamedTuple):
    """A column of the files that a setting names, and the column it becomes."""

    key: str
    name: str
    column: Column


def require(
    columns: Mapping[str, str], present: Sequence[str], where: str, do: str | None = None
) -> None:
    """Raises StageError if a file lacks columns, or has one twice; `columns` is setting to column.

    The error proposes the columns that may be meant; `do` is the advice if there is no setting.
    """
    for name in columns.values():
        if present.count(name) > 1:
            found = f"{present.count(name)} columns named '{name}' among {listed(present)}"
            raise StageError(found, where, "rename all but one of them")
    missing = {key: name for key, name in columns.items() if name not in present}
    if not missing:
        return
    names = " and ".join(f"'{name}'" for name in dict.fromkeys(missing.values()))
    found = f"no column {names}; the file has {listed(present)}"
    free = [name for name in present if name not in columns.values()]
    joined = [mark for mark in (";", "\t", "|", ",") if len(present) == 1 and mark in present[0]]
    if do is None and joined:
        shown = json.dumps(joined[0])
        do = f"its columns are not told apart: write `delimiter: {shown}`"
    if do is None and any(name.startswith(("http://", "https://")) for name in present):
        do = "the first row holds no names: name the columns in order, as `columns: [text, url]`"
    if do is None:
        meant = {key: alike(name, free) for key, name in missing.items()}
        likely = [
            f"`extra.{name}`" if key.startswith("extra.") else f"`{key}: {name}`"
            for key, name in meant.items()
            if name
        ]
        rest = " and ".join(f"`{key}`" for key in missing if not meant.get(key))
        asks = f"did you mean {' and '.join(likely)}?" if likely else ""
        name = f"write in {rest} how the file names it, or null if it has none" if rest else ""
        do = f"{asks} And {name}" if likely and rest else asks + name
    raise StageError(found, where, do)


def alike(name: str, names: Sequence[str]) -> str | None:
    """Returns the column that is probably meant: same letters, a synonym, or nearly the name."""
    plain = {_letters(column): column for column in reversed(names)}
    letters = _letters(name)
    words = next((words for words in SAME if letters in words), (letters,))
    for word in (letters, *words, *get_close_matches(letters, plain, n=1, cutoff=0.75)):
        if word in plain:
            return plain[word]
    return None


def fitted(
    columns: Sequence[SourceColumn], rows: Mapping[str, Values], where: str | None = None
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Returns the columns by the name they get, and which values of each are unfit.

    With `where`, StageError for a column most of whose values are unfit: its setting is wrong.
    """
    fits = {source.column.name: fit(rows[source.name], source.column.dtype) for source in columns}
    if where is not None:
        for source in columns:
            refuse_misfits(source, rows[source.name], fits[source.column.name][1], where)
    return {n: value for n, (value, _) in fits.items()}, {n: bad for n, (_, bad) in fits.items()}


def create_shards(
    ctx: Context, read: Callable[..., Any], scanned: Sequence[Any], together: bool = True
) -> None:
    """Creates the shards of scanned files; small ones `together`, which share a unit's cost.

    StageError if most of the first rows contradict the settings; not for a crash.
    """
    groups = groups_in(scanned)
    try:
        ctx.map(partial(_try_first, read), groups[:1])
    except StageError as error:
        if not isinstance(error.__cause__, CrashedError):  # its shards fail, and no others
            raise
    ctx.create_shards_together(read, joined(groups) if together else groups)


def _try_first(read: Callable[..., Iterator[Any]], group: Sequence[Source], _: Task) -> Any:
    with suppress(ShardError):
        first_rows(chain.from_iterable(read(group[:1], None, is_tried=True)), TRIED_ROWS)
    return {}


def head_of(
    files: Iterable[Any], scan: Callable[..., Any], read: Callable[..., Any], rows: int
) -> pa.Table:
    """Returns the first rows of the files, which are scanned and read as by a run."""
    groups = (group for file in files for group in scan(file, None)["groups"])
    sources = chain.from_iterable(read(group, None) for group in groups)
    return first_rows(chain.from_iterable(sources), rows)


def refuse_misfits(
    source: SourceColumn,
    values: Values,
    misfit: pa.Array,
    where: str,
    what: str | None = None,
    do: str | None = None,
) -> None:
    """Raises StageError if most values are unfit: `what` they are, and what to `do`."""
    is_misfit = misfit.to_pylist()
    pairs = list(zip(_python(values), is_misfit, strict=True)) if any(is_misfit) else []
    present = sum(value is not None for value, _ in pairs)
    bad = [value for value, is_bad in pairs if is_bad and value is not None]
    if not is_most(len(bad), present):
        return
    example = shortened(bad[0])
    dtype = source.column.dtype
    is_vector = pa.types.is_fixed_size_list(dtype)
    what = what or f"no {f'vectors of {dtype.list_size} numbers' if is_vector else dtype}"
    found = f"{len(bad)} of the first {present} values of '{source.name}' are {what}: {example}"
    raise StageError(found, where, do or _instead(source, values, bad, where))


def is_most(bad: int, values: int) -> bool:
    """Returns whether a setting is wrong: most of 20 or more values are unfit, or all of 3 up."""
    return bad * 2 > values and (values >= MANY or 3 <= bad == values)


def shortened(value: Any) -> str:
    """Returns the first 60 characters of a value as Python writes it, of bytes as of their text."""
    text = repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def refuse_uids(
    name: str, values: Values, misfit: pa.Array, where: str, do: str | None = None
) -> None:
    """Raises StageError if most values are no uid."""
    what = "no uid of 16 bytes or 32 hex digits"
    refuse_misfits(SourceColumn("uid_col", name, UID), values, misfit, where, what, do)


def listed(names: Sequence[str]) -> str:
    """Returns the names in one line, at most SHOWN of them."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _instead(source: SourceColumn, values: Values, bad: Sequence[Any], where: str) -> str:
    """Returns what to write instead of a setting that most values contradict."""
    if pa.types.is_fixed_size_list(source.column.dtype):
        widths = {len(value) for value in bad if isinstance(value, list)}
        if len(widths) == 1 and widths != {source.column.dtype.list_size}:
            width, kind = widths.pop(), source.column.dtype.value_type
            if source.key.endswith("_col"):
                return f"write embedding_width: {width}"
            return f'write `{source.key}: "fixed_size_list<item: {kind}>[{width}]"`'
        return f"name a column of vectors without NaN in `{source.key}`, or leave it out"
    is_text = not where.lower().endswith(PARQUET_SUFFIXES)
    if is_text and source.column.dtype == pa.string() and isinstance(bad[0], bytes):
        return "these are no UTF-8: write `encoding: cp1252`, or whichever the file has"
    if source.key.startswith("extra."):
        try:
            found = pa.array(bad[:MANY]).type if isinstance(values, list) else values.type
        except (pa.ArrowException, ValueError, TypeError):
            return f"leave out `{source.key}`: its values are of several types"
        found = pa.string() if found in (pa.binary(), pa.large_binary()) else found
        return f"write `{source.key}: {found}`"
    return f"name another column in `{source.key}`, or leave it out"


def _python(values: Values) -> list[Any]:
    """Returns the values as Python objects; text as bytes, which may be no UTF-8."""
    if isinstance(values := python(values), list):
        return values
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.large_binary())
    return list(values.to_pylist())


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def source_columns(
    stage: Any, own: Mapping[str, Column], extra: Mapping[str, str]
) -> list[SourceColumn]:
    """Returns the columns that settings name: the stage's own by key, then those of `extra`."""
    named = {key: getattr(stage, key) for key in own}
    return [
        *(SourceColumn(key, name, own[key]) for key, name in named.items() if name is not None),
        *(
            SourceColumn(f"extra.{name}", name, Column(name, type_of(text), "as found", PASSED))
            for name, text in extra.items()
        ),
    ]


def check_extra(extra: Mapping[str, str], taken: Sequence[str]) -> None:
    """Raises RecipeError for a column read already, an unknown type, and one no file can hold."""
    for name, text in extra.items():
        if name in {UID.name, REASON.name, *taken}:
            raise RecipeError(f"'{name}' twice", "key `extra`", "leave it out: it is read")
        where = f"key `extra.{name}`"
        try:
            dtype = type_of(text)
        except (OverflowError, *PARSE_ERRORS) as error:
            do = "write an Arrow type as Arrow prints it: string, int64, double, timestamp[us],"
            do += " list<item: string>, fixed_size_list<item: float>[512], ..."
            why = "" if str(error) == f"'{text}' is none" else f": {error}"
            raise RecipeError(f"'{text:.80}' is no Arrow type{why}", where, do) from error
        stored = comes_back(dtype)
        if stored != dtype:
            do = "leave it out" if stored is None else f"write {stored}"
            raise RecipeError(f"Parquet stores no {dtype}", where, do)


def type_of(text: str) -> pa.DataType:
    """Returns the type that Arrow prints so, or that has this alias; ValueError if there is none.

    `list<string>` is short for `list<item: string>`, `fixed_size_list<float>[512]` likewise.
    """
    text = text.strip()
    with suppress(ValueError):
        return pa.type_for_alias(text)
    if match := re.fullmatch(r"(timestamp)\[(\w+), tz=([^\]]+)\]", text):
        return pa.timestamp(match[2], match[3])
    if match := re.fullmatch(r"(?:fixed_size_)?binary\[(\d+)\]", text):
        return pa.binary(int(match[1]))
    if match := re.fullmatch(r"(decimal(?:32|64|128|256))\((\d+), *(-?\d+)\)", text):
        return getattr(pa, match[1])(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(?s)(\w+)<(.*)>(?:\[(\d+)\])?", text):
        return _nested(match[1], _parts(match[2]), match[3], text)
    raise ValueError(f"'{text}' is none")


def comes_back(dtype: pa.DataType) -> pa.DataType | None:
    """Returns the type that Parquet gives back for a column of this one; None if it stores none."""
    sink = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, pa.schema([("column", dtype)])).close()  # a table imports pandas
    except pa.ArrowException:
        return None
    return pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema_arrow.field(0).type


def _nested(kind: str, parts: list[str], width: str | None, text: str) -> pa.DataType:
    """Returns a type that holds others; `width` is the number in brackets behind it."""
    if len(parts) == 1 and kind == "fixed_size_list" and width:
        return pa.list_(_field(parts[0], "item"), int(width))
    if len(parts) == 1 and kind in LISTS and width is None:
        return LISTS[kind](_field(parts[0], "item"))
    if width is None and kind == "struct" and parts:
        return pa.struct([_field(part, None) for part in parts])
    if width is None and kind == "map" and len(parts) in (2, 3):
        key, value = (re.sub(r" \('\w+'\)$", "", part) for part in parts[:2])
        return pa.map_(type_of(key), type_of(value), keys_sorted=parts[2:] == ["keys_sorted"])
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    if width is None and kind == "dictionary" and named.keys() >= {"values", "indices"}:
        ordered = named.get("ordered", "0") != "0"
        return pa.dictionary(type_of(named["indices"]), type_of(named["values"]), ordered)
    raise ValueError(f"'{text}' is none")


def _field(text: str, name: str | None) -> pa.Field:
    """Parses `name: type`, with or without `not null`; `name` is for text that gives none."""
    head, colon, tail = text.partition(": ")
    if not colon or (name is not None and "<" in head):  # the colon belongs to an inner type
        if name is None:
            raise ValueError(f"a field without `name: type` in '{text}'")
        head, tail = name, text
    kind = tail.removesuffix(" not null")
    return pa.field(head.strip(), type_of(kind), nullable=kind == tail)


def _parts(text: str) -> list[str]:
    """Splits the text at commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "<[(") - (letter in ">])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
