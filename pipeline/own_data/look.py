"""Identifies the data at a path: layout, columns, and the ingest stage that reads them."""

import hashlib
import posixpath
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import fs

from clipmill.metadata.globs import ARROW, DATABASES, SHEETS
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data import folders
from clipmill.pipeline.own_data.data import Data, UnsureError, shard_rows
from clipmill.pipeline.own_data.layouts import (
    PICTURES,
    TARS,
    Layout,
    below,
    dataset_card,
    is_metadata,
    layout_of,
    suffix_of,
)
from clipmill.pipeline.own_data.roles import (
    Roles,
    as_paths,
    example,
    has_words,
    is_base64,
    is_image,
    is_path,
    is_url,
    private_links,
    roles_of,
)
from clipmill.pipeline.own_data.sample import Sample, form_sample, parquet_sample, text_sample
from clipmill.pipeline.planning.settings import stage_class

NO_CAPTIONS = "no column of captions was found; --caption NAME names one"
DATACOMP = ("uid", "url", "text")
DATACOMP_SCORES = ("clip_l14_similarity_score", "clip_b32_similarity_score")
TRIED, FOLDERS = 16, 64  # tables beside pictures, and folders near a table, most
NAMED, FEW = 100, 8  # values that are looked for as pictures: by their names, as files
TEXT_ROLES = ("uid", "width", "height")  # that `ingest.url_list` takes beside link and caption
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}  # a stage's default by suffix
NAMES = {
    **{".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet", ".txt": "text", ".json": "JSON"},
    **dict.fromkeys(ARROW, "Arrow"),
    **dict.fromkeys(DATABASES, "database"),
    **dict.fromkeys(SHEETS, "Excel"),
}


def look_at(
    path: str, answers: Mapping[str, str], pictures: str | None = None, table: str | None = None
) -> Data:
    """Identifies data; RecipeError if no stage reads them, UnsureError for an open question.

    `pictures` is the folder where the paths of a table start, if not its own; `table` is the one
    of a database that is meant.
    """
    data = _look_at(path, answers, table, pictures is not None)
    if table and data.uses != "ingest.table":
        do = "leave it out: it is for databases and workbooks"
        raise RecipeError(f"--table, and {data.what}", redacted(path), do)
    if table:
        data = replace(data, settings={"table": table} | data.settings)
    if not pictures:
        return data
    if data.uses != "ingest.table" or data.is_linked:
        do = "leave it out: it is for tables with paths of pictures"
        raise RecipeError(f"--pictures, and {data.what}", redacted(path), do)
    return replace(data, settings={"pictures": pictures} | data.settings)


def _look_at(path: str, answers: Mapping[str, str], name: str | None, has_pictures: bool) -> Data:
    layout = layout_of(path)
    if layout.tables and (data := _beside(layout, answers)):
        return data
    if layout.question:
        raise layout.question
    if layout.kind == "pictures":
        return folders.pictures(layout, answers)
    if layout.kind in TARS:
        return folders.tars(layout, answers)
    sample = _sample(layout, name)
    if layout.kind == ".parquet" and _is_datacomp(layout, sample.table):
        return _datacomp(layout, sample)
    shown = redacted(layout.path)
    if not sample.table.column_names:
        raise RecipeError("no rows", shown, "give a file that holds some")
    roles = roles_of(sample.table, answers, shown, is_beside=has_pictures)
    if has_pictures and not roles.image:
        roles = roles_of(sample.table, answers, shown)
    if not (roles.image or roles.url or has_pictures) and (image := _named_near(layout, sample)):
        roles = roles_of(sample.table, {"image": image, **answers}, shown, is_beside=True)
    described = (_rows if roles.image or not sample.is_text else _text)(layout, sample, roles)
    if roles.image and not described.is_linked and not has_pictures and described.has_paths:
        described = _placed(described, layout, sample, roles)
    return folders.with_texts(described, sample.table, roles.caption)


def _sample(layout: Layout, name: str | None = None) -> Sample:
    """Returns the first rows of a table, of a database the one with this name."""
    if layout.kind == ".parquet":
        return parquet_sample(layout.storage, layout.files)
    return form_sample(layout.storage, layout.files, name) or text_sample(
        layout.storage, layout.files, layout.kind
    )


def _beside(layout: Layout, answers: Mapping[str, str]) -> Data | None:
    """Describes the table that names the pictures of a folder; None if none of its tables does.

    UnsureError if several do.
    """
    ends = _by_end(file.name for file in layout.files)
    found: dict[str, Data] = {}
    commands: list[str] = []
    for file in layout.tables[:TRIED]:
        path = below(layout.path, file.name)
        table = replace(layout, kind=suffix_of(file.name), path=path, files=[file], aside={})
        try:
            sample = _sample(table)
            if is_metadata(file.name) and "file_name" in sample.table.column_names:
                continue  # which the stage for folders reads
            roles = roles_of(sample.table, answers, path, is_beside=True)
            if not roles.image and (named := _named(sample.table, ends)):
                roles = roles_of(sample.table, {"image": named, **answers}, path, is_beside=True)
        except UnsureError:
            raise
        except RecipeError:  # no table
            continue
        if not roles.image:
            continue
        own = file.name.rpartition("/")[0]
        start, settings = folders.start_of(_values(sample, roles.image), ends, file.name)
        if start is not None:
            data = folders.with_texts(_rows(table, sample, roles), sample.table, roles.caption)
            place = {"pictures": below(layout.path, start)}
            settings |= place if start != own else {}
            found[path] = replace(data, settings=settings | data.settings)
            commands.append(shlex.join([path, "--pictures", place["pictures"]]))
    if len(found) > 1:
        rows = {path: f"{data.rows:,} rows" for path, data in found.items()}
        do = "give one of them, with where its pictures start:  " + "  or  ".join(commands)
        raise UnsureError("data", rows, redacted(layout.path), do)
    return next(iter(found.values()), None)


def _by_end(names: Iterable[str]) -> Any:
    """Returns pictures by the ends of their paths, as the stage finds them."""
    stage: Any = stage_class("ingest.table", "")
    return stage.by_end(names)


def _values(sample: Sample, image: str) -> list[Any]:
    values: list[Any] = as_paths(sample.table[image]).drop_null().to_pylist()
    return values


def _named(table: pa.Table, ends: Any) -> str | None:
    """Returns the column that names most pictures without their suffix, or None."""
    named: dict[str, set[str]] = {}
    for name in table.column_names:
        values = [str(value) for value in table[name].drop_null().to_pylist()[:NAMED]]
        found = [value for value in values if ends.find(value) is not None]
        if 2 * len(found) > len(values):
            named[name] = set(found)  # a label may be a name, too, but of few
    return max(named, key=lambda name: len(named[name]), default=None)


def _named_near(layout: Layout, sample: Sample) -> str | None:
    """Returns the column that names pictures near a table without their suffix, or None."""
    try:
        return _named(sample.table, _by_end(_near(layout)[1]))
    except OSError:  # no folders, as on the web
        return None


def _near(layout: Layout) -> tuple[Storage, list[str]]:
    """Returns the folder of a table, a zip there or the one above, and its pictures."""
    storage = layout.storage
    names = _pictures_in(storage)
    zips = [entry.name for entry in storage.entries() if entry.name.lower().endswith(".zip")]
    if len(zips) == 1 and not names:
        storage = Storage(below(storage.uri, zips[0]))
        names = _pictures_in(storage)
    if names or not storage.is_local:
        return storage, names
    parent = Storage(posixpath.dirname(storage.uri))
    return parent, _pictures_in(parent)


def _is_shown(info: fs.FileInfo) -> bool:
    try:
        return bool(info.base_name[:1] != ".")
    except UnicodeDecodeError:  # no table names such a file
        return False


def _pictures_in(storage: Storage) -> list[str]:
    names, folders = list[str](), [""]
    for _ in range(3):  # all of a home would take minutes
        found = [
            info
            for folder in folders[:FOLDERS]
            for info in storage.fs.get_file_info(
                fs.FileSelector(storage.locate(folder).rstrip("/"))
            )
            if _is_shown(info)
        ]
        paths = {info.path[len(storage.path) :].lstrip("/"): info.type for info in found}
        names += [path for path in paths if suffix_of(path) in PICTURES]
        folders = sorted(path for path, kind in paths.items() if kind == fs.FileType.Directory)
    return names


def _placed(data: Data, layout: Layout, sample: Sample, roles: Roles) -> Data:
    """Returns a table of paths with where they start, if most are no files in its folder."""
    values = _values(sample, str(roles.image))[:NAMED]
    try:
        storage, own = layout.storage, layout.files[0].name.rpartition("/")[0]
        places = [storage.locate(posixpath.join(own, str(value))) for value in values[:FEW]]
        infos = storage.fs.get_file_info(places)
        if 2 * sum(info.type == fs.FileType.File for info in infos) > len(infos):
            return data
        folder, names = _near(layout)
    except OSError:  # no folders, as on the web
        return data
    table = layout.files[0].name if folder is layout.storage else ""
    start, settings = folders.start_of(values, _by_end(names), table)
    if start is None:
        return data
    if start != own or not table:
        settings |= {"pictures": below(folder.uri, start)}
    return replace(data, settings=settings | data.settings)


def _rows(layout: Layout, sample: Sample, roles: Roles) -> Data:
    """Describes Parquet with any columns, and other tables with pictures or paths of them."""
    if not (roles.image or roles.url):
        raise _no_picture(layout, sample)
    if roles.image:
        _refuse_text(sample.table[roles.image], roles.image, layout)
    is_parquet = layout.kind == ".parquet"
    is_named = roles.image is not None and not is_image(sample.table[roles.image])
    names, form = _form(layout, sample, roles) if sample.is_text else ({}, {})
    columns = roles.named()
    width = None
    for name in (roles.image_embedding, roles.text_embedding):
        if name:
            width = next((len(vector) for vector in sample.table[name] if vector.is_valid), width)
    settings = form | {f"{role}_col": names.get(name, name) for role, name in columns.items()}
    notes = _splits(layout) + (() if roles.image else private_links(sample.table[roles.url]))
    has_bytes = roles.image is not None and not is_named
    if has_bytes and roles.sha256 and not _agree(sample.table, str(roles.image), roles.sha256):
        del settings["sha256_col"]
        notes += (f"{roles.sha256} is not that of the pictures here, which were made smaller",)
    if width:
        settings["embedding_width"] = width
    if roles.scores:
        types = {name: str(sample.table[name].type) for name in roles.scores}
        settings["extra"] = {
            names.get(name, name): "double" if sample.is_text else types[name] for name in types
        }
    has_paths = is_named and not is_base64(sample.table[roles.image])
    holds = "paths of pictures" if has_paths else "pictures in it" if roles.image else "links"
    captions = "captions" if roles.caption else "no captions"
    notes += () if roles.caption else (NO_CAPTIONS,)
    wrote = ", clipmill's export" if dataset_card(layout.storage) else ""
    return Data(
        path=layout.path,
        what=f"{_files(layout)} with {holds} and {captions}{wrote}",
        uses="ingest.parquet" if is_parquet and not is_named else "ingest.table",
        settings=settings | {"shard_rows": shard_rows(sample.rows)},
        rows=sample.rows,
        is_exact=sample.is_exact,
        columns=roles.shown(),
        scores=roles.scores,
        is_linked=roles.image is None,
        has_captions=roles.caption is not None,
        has_paths=has_paths,
        embedding_width=width,
        aside=layout.aside,
        notes=notes,
    )


def _text(layout: Layout, sample: Sample, roles: Roles) -> Data:
    """Describes CSV, TSV, JSON lines and plain lists."""
    if not roles.url:
        raise _no_picture(layout, sample)
    names, settings = _form(layout, sample, roles)
    is_csv = not layout.kind.startswith((".json", ".ndjson"))
    is_list = is_csv and len(sample.table.column_names) == 1
    settings["url_col"] = names[roles.url]
    settings["caption_col"] = names[roles.caption] if roles.caption else None
    more = {role: name for role, name in roles.named().items() if role in TEXT_ROLES}
    settings |= {f"{role}_col": names[name] for role, name in more.items()}
    if roles.scores:
        settings["extra"] = {names[name]: "double" for name in roles.scores}
    holds = "links" + (" and captions" if roles.caption else ", no captions")
    header = "" if not is_csv or sample.has_header or is_list else " without a header"
    notes = ("letters are read as Windows writes them: look at the rows below",)
    return Data(
        path=layout.path,
        what=f"list of {holds}" if is_list else f"{_files(layout)}{header} of {holds}",
        uses="ingest.url_list",
        settings=settings | {"shard_rows": shard_rows(sample.rows)},
        rows=sample.rows,
        is_exact=sample.is_exact,
        columns=roles.shown(),
        scores=tuple(names[name] for name in roles.scores),
        is_linked=True,
        has_captions=roles.caption is not None,
        aside=layout.aside,
        notes=(
            *(notes if sample.encoding else ()),
            *private_links(sample.table[roles.url]),
            *(() if roles.caption or is_list else (NO_CAPTIONS,)),
        ),
    )


def _form(layout: Layout, sample: Sample, roles: Roles) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the names that columns of a text file get, and the settings that tell its form."""
    settings: dict[str, Any] = {}
    names = {name: name for name in sample.table.column_names}
    if layout.kind.startswith((".json", ".ndjson")):
        return names, {"encoding": sample.encoding} if sample.encoding else {}
    if not sample.has_header:
        plain = {roles.url: "url", roles.caption: "text", roles.image: "image"}
        names = {name: plain.get(name, name.replace(" ", "_")) for name in names}
        if len(names) > 1 or roles.image:  # a first row of one link is no header
            settings["columns"] = list(names.values())
    if sample.delimiter not in ("", DELIMITERS[layout.kind]):
        settings["delimiter"] = sample.delimiter
    if sample.encoding:
        settings["encoding"] = sample.encoding
    if not sample.is_quoted:
        settings["quoted"] = False
    return names, settings


def _is_datacomp(layout: Layout, table: pa.Table) -> bool:
    names = set(table.column_names)
    has_vectors = any(name.endswith(".npz") for name in layout.beside)
    return names.issuperset(DATACOMP) and (has_vectors or not names.isdisjoint(DATACOMP_SCORES))


def _datacomp(layout: Layout, sample: Sample) -> Data:
    """Describes metadata written by DataComp's downloader."""
    scores = tuple(name for name in DATACOMP_SCORES if name in sample.table.column_names)
    settings: dict[str, Any] = {}
    if scores:
        is_double = pa.types.is_float64(sample.table[scores[0]].type)
        settings = {"scores": True} | ({"score_type": "float64"} if is_double else {})
    named = {"url": "url", "caption": "text", "uid": "uid"}
    return Data(
        path=layout.path,
        what=f"DataComp metadata in {_files(layout)}",
        uses="ingest.datacomp",
        settings=settings | {"shard_rows": shard_rows(sample.rows)},
        rows=sample.rows,
        is_exact=sample.is_exact,
        columns=named | ({"scores": ", ".join(scores)} if scores else {}),
        scores=scores,
        is_linked=True,
        aside=layout.aside,
        notes=private_links(sample.table["url"]),
    )


def _agree(table: pa.Table, image: str, sha256: str) -> bool:
    """Returns whether the first picture has the stated digest."""
    for row in table.select([image, sha256]).slice(0, 64).to_pylist():
        body = row[image].get("bytes") if isinstance(row[image], dict) else row[image]
        if body and row[sha256]:
            return hashlib.sha256(body).hexdigest() == str(row[sha256]).lower()
    return True


def _files(layout: Layout) -> str:
    name = NAMES.get(layout.kind, "JSON lines")
    return f"{len(layout.files):,} {name} files" if len(layout.files) > 1 else name


def _splits(layout: Layout) -> tuple[str, ...]:
    """Returns a note if several splits of a Hugging Face folder are read as one."""
    parts = [file.name.split("/") for file in layout.files]
    first = [name for *folders, base in parts for name in (*folders[-1:], base.partition("-")[0])]
    splits = [name for name in dict.fromkeys(first) if name in ("train", "test", "validation")]
    if len(splits) < 2:
        return ()
    return (f"splits {', '.join(splits)} are read as one; give a glob for one of them",)


def _no_picture(layout: Layout, sample: Sample) -> RecipeError:
    """Returns the error for a table without links and pictures."""
    names = ", ".join(map(repr, sample.table.column_names))
    where = redacted(layout.path)
    if not len(sample.table):
        return RecipeError(f"no rows below {names}", where, "give a file that holds some")
    return RecipeError(
        found=f"no column of links or of pictures among {names}",
        where=where,
        do="name it: --url NAME for links (https://…), --image NAME for pictures in the file, or"
        " for paths of picture files",
    )


def _refuse_text(values: pa.ChunkedArray, name: str, layout: Layout) -> None:
    """Raises RecipeError if what is called pictures are links, or texts that are no paths."""
    do = "name a column of pictures, or of the paths of their files"
    if is_url(values):
        found, do = "links", f"give them as --url {shlex.quote(name)}"
    elif has_words(values) and not is_path(values) and not is_base64(values):
        found = "no pictures"
    else:
        return
    where = f"--image, {redacted(layout.path)}"
    raise RecipeError(f"'{name}' holds {found}: {example(values)}", where, do)
