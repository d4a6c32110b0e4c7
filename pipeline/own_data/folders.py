"""Describes data whose pictures are files in folders or tars."""

import io
import json
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from clipmill.metadata.globs import files_of
from clipmill.metadata.keys import redacted
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import Data, shard_rows
from clipmill.pipeline.own_data.layouts import (
    TARS,
    Layout,
    caption_path,
    dataset_card,
    is_metadata,
    suffix_of,
)
from clipmill.pipeline.own_data.roles import (
    check_answers,
    has_mark,
    is_caption,
    is_list,
    is_talk,
    is_url,
    roles_of,
)
from clipmill.pipeline.own_data.sample import parquet_sample, records_sample, text_sample

FEW = 64  # files of captions that are looked at
TAR_BYTES, TAR_MEMBERS = 32 << 20, 1000  # of the first tar, looked at for keys of its .json
JSON_BYTES = 1 << 20  # a larger .json is passed over: a sparse one may state any size
# Stages that leave a byte-order mark in captions unless `strip_bom` is set.
KEEP_MARKS = ("ingest.parquet", "ingest.url_list", "ingest.table")


def pictures(layout: Layout, answers: Mapping[str, str]) -> Data:
    """Describes a folder of pictures, with captions in other files."""
    kinds = answers.get("caption", "")
    if "{class}" in kinds:
        answers = {role: name for role, name in answers.items() if role != "caption"}
    tables = [name for name in layout.beside if is_metadata(name)]
    table, caption = _captions_in(layout, tables[0], answers) if tables else (None, None)
    found = set(layout.beside)
    texts = [
        name for file in layout.files if (name := caption_path(file.name, layout.captions)) in found
    ]
    place, key = layout.captions, None
    if not caption and texts and place.lower().endswith(".json"):
        key, table = _in_json(layout, texts, answers)
        place = place if key else ""
    elif not tables:
        _refuse_answers(answers, layout, "pictures have no columns")
    if place not in ("", "{name}.txt") and not key and not _have_words(layout.storage, texts):
        place = ""
    tabled = {PurePosixPath(name).parent for name in tables if caption}
    folders = {posixpath.dirname(file.name) for file in layout.files}
    folders = {name for name in folders if tabled.intersection(PurePosixPath(name, "_").parents)}
    with_caption = sum(
        (bool(place) and caption_path(file.name, place) in found)
        or posixpath.dirname(file.name) in folders
        for file in layout.files
    )
    rows = len(layout.files)
    settings: dict[str, Any] = {"caption_col": caption} if tables and caption != "text" else {}
    if place not in ("", "{name}.txt"):
        settings["caption_files"] = place
    if key:
        settings["caption_key"] = key
    where_captions = (
        f"captions in {tables[0].rpartition('/')[2]}"
        if caption
        else f"captions in {place}"
        if place.startswith("..")
        else f"captions in a {suffix_of(place) or '.txt'} beside each"
    )
    notes: tuple[str, ...] = ()
    if "{class}" in kinds:
        settings["caption"] = kinds
        before = f"{where_captions}, else" if with_caption else "captions of"
        where_captions, with_caption = f"{before} their folders' names", rows
    elif not with_caption:
        where_captions = "no captions"
        notes = ("a caption is a .txt beside its picture: cat.jpg, cat.txt",)
        if any("/" in file.name for file in layout.files):
            notes += ('folders that are classes:  --caption "a photo of a {class}"',)
    elif with_caption < rows:
        notes = (f"pictures without a file for their caption: {rows - with_caption:,}",)
    data = Data(
        path=layout.path,
        what=f"folder of pictures, {where_captions}",
        uses="ingest.image_folder",
        settings={**settings, "shard_rows": shard_rows(rows)},
        rows=rows,
        columns={"caption": found_in} if (found_in := caption or key) else {},
        has_captions=bool(with_caption),
        aside=layout.aside,
        notes=notes,
    )
    return data if table is None else with_texts(data, table, caption or key)


def _in_json(
    layout: Layout, names: Sequence[str], answers: Mapping[str, str]
) -> tuple[str | None, pa.Table]:
    """Returns the key of the captions in files of JSON, one a picture, and the first of these."""
    records = []
    for name in _inside(layout.storage, names):
        with suppress(*PARSE_ERRORS):
            record = json.loads(layout.storage.read_at(name, 0, JSON_BYTES))
            records += [record] if isinstance(record, dict) else []
    table = records_sample(records)
    return roles_of(table, answers, redacted(layout.path)).caption, table


def _inside(storage: Storage, names: Sequence[str]) -> list[str]:
    """Returns the first files, without links, which may lead out of the folder."""
    local = storage.is_local
    return [name for name in names[:FEW] if not (local and os.path.islink(storage.locate(name)))]


def _have_words(storage: Storage, names: Sequence[str]) -> bool:
    """Returns whether captions are that, not the numbers of boxes."""
    few = _inside(storage, names)
    texts = [storage.read_at(name, 0, 1024).decode(errors="ignore") for name in few]
    return is_caption(pa.chunked_array([pa.array(texts, pa.string())])) if texts else True


def _captions_in(
    layout: Layout, name: str, answers: Mapping[str, str]
) -> tuple[pa.Table, str | None]:
    """Returns first rows of the metadata file beside pictures, and its caption column, or None."""
    (file,) = (file for file in files_of(layout.storage.uri) if file.name == name)
    if name.endswith(".parquet"):
        table = parquet_sample(layout.storage, [file]).table
    else:
        table = text_sample(layout.storage, [file], suffix_of(name)).table
    named = [column for column in table.column_names if column != "file_name"]
    table = table.select(named)
    return table, roles_of(table, answers, f"{layout.storage}/{name}").caption


def start_of(values: Sequence[Any], ends: Any, table: str) -> tuple[str | None, dict[str, Any]]:
    """Returns the folder where most paths of a table start, or None, and settings to find them.

    The table's own folder comes first. `ends` has the pictures near the table by their paths' ends.
    """
    names = ends.names
    own = table.rpartition("/")[0]
    wanted = [posixpath.normpath(str(value).strip().replace("\\", "/")) for value in values]
    if 2 * sum(posixpath.join(own, value) in names for value in wanted) > len(wanted):
        return own, {}
    starts_of: dict[str, list[str]] = {}  # end of a name, as deep as a value -> before it
    for depth in {value.count("/") for value in wanted}:
        for start, *end in (f"/{name}".rsplit("/", depth + 1) for name in names):
            if len(end) > depth:
                starts_of.setdefault("/".join(end), []).append(start.lstrip("/"))
    starts = Counter(start for value in wanted for start in starts_of.get(value, ()))
    most = max(starts.values(), default=0)
    best = [start for start, count in starts.items() if count == most]
    if len(best) > 1:  # captions_train.json takes train/ and not val/
        base = posixpath.basename(table)
        best = [start for start in best if start and posixpath.basename(start) in base]
    if 2 * most > len(wanted) and len(best) == 1:
        return best[0], {}
    is_found = 2 * sum(ends.find(value) is not None for value in wanted) > len(wanted)
    return ("", {"search": True}) if is_found else (None, {})


def tars(layout: Layout, answers: Mapping[str, str]) -> Data:
    """Describes WebDataset tars; columns are keys of the .json in them."""
    table, has_txt = _tar_sample(layout)
    where, names = redacted(layout.path), table.column_names
    if not names:
        _refuse_answers(answers, layout, "the tars hold no .json")
    for role in answers.keys() & {"image", "sha256"}:
        raise RecipeError(f"--{role}, and tars hold the pictures", where, f"leave out --{role}")
    check_answers(table, answers, where)
    caption = answers.get("caption")
    if caption is None and not has_txt and "caption" not in names:
        free = table.select([name for name in names if not is_url(table[name])])
        caption = roles_of(free, {}, where).caption
    named = dict(answers) | ({"caption": caption} if caption else {})
    has_captions = has_txt or bool(caption) or "caption" in names
    stats = [name for name in layout.beside if name.endswith("_stats.json")]
    card = dataset_card(layout.storage)
    counts: list[Any] = [None]
    if card is not None:
        counts = [card.get("rows")]
    elif len(stats) == len(layout.files):
        counts = [(layout.storage.read_json(name, dict) or {}).get("successes") for name in stats]
    wrote = "clipmill's export" if card is not None else "img2dataset's output" if stats else ""
    tars = f"{len(layout.files):,} WebDataset tar{'s' if len(layout.files) > 1 else ''}"
    data = Data(
        path=layout.path,
        what=f"{tars}{wrote and f', {wrote}'}",
        uses="ingest.webdataset",
        settings={f"{role}_col": name for role, name in named.items()},  # a tar is a shard
        rows=sum(counts) if all(isinstance(count, int) for count in counts) else None,
        columns=named,
        has_captions=has_captions,
        aside=layout.aside,
        notes=() if has_captions else ("no .txt and no captions in the .json were found",),
    )
    return with_texts(data, table, caption or ("caption" if not has_txt else None))


def _tar_sample(layout: Layout) -> tuple[pa.Table, bool]:
    """Returns the .json of the first tar's first samples as a table, and whether there is a .txt.

    True also if nothing of them can be read: then the stage that reads the tar says why.
    """
    first = layout.files[0].name
    body = io.BytesIO(layout.storage.read_at(first, 0, TAR_BYTES))
    if first.lower().endswith(TARS[1:]):
        with suppress(zlib.error):
            body = io.BytesIO(zlib.decompressobj(31).decompress(body.read(), TAR_BYTES))
    records, suffixes = [], set[str]()
    with (
        suppress(tarfile.TarError, OSError, *PARSE_ERRORS),
        tarfile.open(fileobj=body, mode="r:") as tar,
    ):
        for member in islice(tar, TAR_MEMBERS):
            suffix = suffix_of(member.name)
            suffixes.add(suffix)
            if (
                suffix == ".json"
                and member.size <= JSON_BYTES
                and (file := tar.extractfile(member))
            ):
                record = json.load(file)
                records += [record] if isinstance(record, dict) else []
    is_unread = not records and (".json" in suffixes or not suffixes)
    return records_sample(records), is_unread or ".txt" in suffixes


def with_texts(data: Data, table: pa.Table, caption: str | None) -> Data:
    """Returns the data with all texts of a column of lists, without byte-order marks; says so."""
    if caption not in table.column_names:
        return data
    if is_talk(table[caption].type):
        data = replace(data, settings=data.settings | {"answers": True})
        setting = "all_captions"
        note = f"{caption} holds conversations: the answers are the captions"
    elif is_list(table[caption].type):
        setting = "all_captions"
        note = f"{caption} holds lists: the first text is the caption, the others leave with it"
    elif data.uses in KEEP_MARKS and has_mark(table[caption]):
        setting = "strip_bom"
        note = "captions begin with a byte-order mark, which is left out"
    else:
        return data
    return replace(data, settings=data.settings | {setting: True}, notes=(*data.notes, note))


def _refuse_answers(answers: Mapping[str, str], layout: Layout, why: str) -> None:
    for role in answers:
        raise RecipeError(f"--{role}, and {why}", redacted(layout.path), f"leave out --{role}")
