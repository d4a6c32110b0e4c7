"""What the data at a path are: their layout, their columns, the ingest stage that reads them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from metadata.keys import redacted
from pipeline.errors import RecipeError
from pipeline.own_data.layouts import Layout, dataset_card, layout_of, stem_of
from pipeline.own_data.roles import Roles, roles_of
from pipeline.own_data.sample import Sample, parquet_sample, text_sample

DATACOMP = ("uid", "url", "text")
DATACOMP_SCORES = ("clip_l14_similarity_score", "clip_b32_similarity_score")
METADATA = ("metadata.jsonl", "metadata.csv")
FEWEST, MOST, SHARDS = 100, 10_000, 64  # rows of a shard, and how many shards there should be
NAMES = {".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet", ".txt": "text"}


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


def look_at(path: str, answers: Mapping[str, str]) -> Data:
    """What lies there; RecipeError where no stage reads it, UnsureError for an open question."""
    layout = layout_of(path)
    if layout.kind == "pictures":
        return _pictures(layout, answers)
    if layout.kind == ".tar":
        return _tars(layout, answers)
    shown = redacted(layout.path)
    if layout.kind == ".parquet":
        sample = parquet_sample(layout.storage, layout.files)
        if _is_datacomp(layout, sample.table):
            return _datacomp(layout, sample)
        return _parquet(layout, sample, roles_of(sample.table, answers, shown))
    sample = text_sample(layout.storage, layout.files, layout.kind)
    if not sample.table.column_names:
        raise RecipeError("no rows", shown, "give a file that holds some")
    return _text(layout, sample, roles_of(sample.table, answers, shown))


def shard_rows(rows: int) -> int:
    """Rows of a shard, so that some 64 shards keep all workers busy."""
    return min(MOST, max(FEWEST, -(-rows // SHARDS)))


def _pictures(layout: Layout, answers: Mapping[str, str]) -> Data:
    _refuse_answers(answers, layout, "pictures have no columns")
    captions = [name for name in layout.beside if name.rpartition("/")[2] in METADATA]
    stems = {stem_of(name) for name in layout.beside if name.lower().endswith(".txt")}
    folders = {name.rpartition("/")[0] for name in captions}
    with_caption = sum(
        stem_of(file.name) in stems
        or any(not folder or file.name.startswith(f"{folder}/") for folder in folders)
        for file in layout.files
    )
    rows = len(layout.files)
    if not with_caption:
        raise RecipeError(
            found=f"{rows:,} pictures, and a caption for none of them",
            where=redacted(layout.path),
            do="write each caption into a .txt beside its picture (cat.jpg, cat.txt), or one"
            ' metadata.jsonl above them, of lines {"file_name": "cat.jpg", "text": "a cat"}',
        )
    said = "metadata.jsonl or metadata.csv" if captions else "a .txt beside each"
    lacking = f"pictures without a file for their caption: {rows - with_caption:,}"
    return Data(
        path=layout.path,
        what=f"folder of pictures, captions in {said}",
        uses="ingest.image_folder",
        settings={"shard_rows": shard_rows(rows)},
        rows=rows,
        aside=layout.aside,
        notes=(lacking,) if with_caption < rows else (),
    )


def _tars(layout: Layout, answers: Mapping[str, str]) -> Data:
    _refuse_answers(answers, layout, "tars have no columns")
    stats = [name for name in layout.beside if name.endswith("_stats.json")]
    card = dataset_card(layout.storage)
    rows: int | None = None
    if card is not None:
        rows = int(str(card.get("rows", 0)))
    elif len(stats) == len(layout.files):
        told = [layout.storage.read_json(name, dict[str, Any]) or {} for name in stats]
        rows = sum(int(one.get("successes", 0)) for one in told)
    wrote = "clipmill's export" if card is not None else "img2dataset's output" if stats else ""
    tars = f"{len(layout.files):,} WebDataset tar{'s' if len(layout.files) > 1 else ''}"
    return Data(
        path=layout.path,
        what=f"{tars}{wrote and f', {wrote}'}",
        uses="ingest.webdataset",
        settings={},  # a tar is a shard
        rows=rows,
        aside=layout.aside,
    )


def _parquet(layout: Layout, sample: Sample, roles: Roles) -> Data:
    """Parquet of any columns."""
    if not (roles.image or roles.url):
        raise _no_picture(layout, sample)
    given = {
        "image_col": roles.image,
        "url_col": roles.url,
        "caption_col": roles.caption,
        "uid_col": roles.uid,
        "width_col": roles.width,
        "height_col": roles.height,
        "sha256_col": roles.sha256,
        "image_embedding_col": roles.image_embedding,
        "text_embedding_col": roles.text_embedding,
    }
    width = None
    for name in (roles.image_embedding, roles.text_embedding):
        if name:
            width = next((len(it) for it in sample.table[name] if it.is_valid), width)
    settings: dict[str, Any] = {key: name for key, name in given.items() if name}
    notes = _splits(layout)
    if roles.image and roles.sha256 and not _agree(sample.table, roles.image, roles.sha256):
        del settings["sha256_col"]
        notes += (f"{roles.sha256} is not that of the pictures here, which were made smaller",)
    if width:
        settings["embedding_width"] = width
    if roles.scores:
        settings["extra"] = {name: str(sample.table[name].type) for name in roles.scores}
    holds = "pictures in it" if roles.image else "links"
    captions = "captions" if roles.caption else "no captions"
    wrote = ", clipmill's export" if dataset_card(layout.storage) else ""
    return Data(
        path=layout.path,
        what=f"{_files(layout)} with {holds} and {captions}{wrote}",
        uses="ingest.parquet",
        settings=settings | {"shard_rows": shard_rows(sample.rows)},
        rows=sample.rows,
        is_exact=sample.is_exact,
        columns=_columns(roles),
        scores=roles.scores,
        is_linked=roles.image is None,
        has_captions=roles.caption is not None,
        embedding_width=width,
        aside=layout.aside,
        notes=notes,
    )


def _text(layout: Layout, sample: Sample, roles: Roles) -> Data:
    """CSV, TSV, JSON lines and plain lists."""
    if not roles.url:
        raise _no_picture(layout, sample)
    settings: dict[str, Any] = {}
    is_csv = not layout.kind.startswith((".json", ".ndjson"))
    is_list = is_csv and len(sample.table.column_names) == 1
    names = {name: name for name in sample.table.column_names}
    if is_csv and not sample.has_header:
        plain = {roles.url: "url", roles.caption: "text"}
        names = {name: plain.get(name, name.replace(" ", "_")) for name in names}
        settings["columns"] = list(names.values())
    if is_csv and sample.delimiter not in ("", {".tsv": "\t"}.get(layout.kind, ",")):
        settings["delimiter"] = sample.delimiter
    settings["url_col"] = names[roles.url]
    settings["caption_col"] = names[roles.caption] if roles.caption else None
    more = {"uid_col": roles.uid, "width_col": roles.width, "height_col": roles.height}
    settings |= {key: names[name] for key, name in more.items() if name}
    if roles.scores:
        settings["extra"] = {names[name]: "double" for name in roles.scores}
    if is_csv and not sample.is_quoted:
        settings["quoted"] = False
    holds = "links" + (" and captions" if roles.caption else ", no captions")
    header = "" if not is_csv or sample.has_header or is_list else " without a header"
    return Data(
        path=layout.path,
        what=f"list of {holds}" if is_list else f"{_files(layout)}{header} of {holds}",
        uses="ingest.url_list",
        settings=settings | {"shard_rows": shard_rows(sample.rows)},
        rows=sample.rows,
        is_exact=sample.is_exact,
        columns=_columns(roles),
        scores=tuple(names[name] for name in roles.scores),
        is_linked=True,
        has_captions=roles.caption is not None,
        aside=layout.aside,
    )


def _is_datacomp(layout: Layout, table: pa.Table) -> bool:
    names = set(table.column_names)
    has_vectors = any(name.endswith(".npz") for name in layout.beside)
    return names.issuperset(DATACOMP) and (has_vectors or not names.isdisjoint(DATACOMP_SCORES))


def _datacomp(layout: Layout, sample: Sample) -> Data:
    """Metadata as DataComp's downloader leaves them."""
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
    )


def _agree(table: pa.Table, image: str, sha256: str) -> bool:
    """Whether the first picture has the digest that is stated."""
    for row in table.select([image, sha256]).slice(0, 64).to_pylist():
        body = row[image].get("bytes") if isinstance(row[image], dict) else row[image]
        if body and row[sha256]:
            return hashlib.sha256(body).hexdigest() == str(row[sha256]).lower()
    return True


def _columns(roles: Roles) -> dict[str, str]:
    """Role to column, for a reader."""
    one = {
        "image": roles.image,
        "url": roles.url,
        "caption": roles.caption,
        "uid": roles.uid,
        "sha256": roles.sha256,
        "width": roles.width,
        "height": roles.height,
        "image embedding": roles.image_embedding,
        "text embedding": roles.text_embedding,
        "scores": ", ".join(roles.scores),
    }
    return {role: name for role, name in one.items() if name}


def _files(layout: Layout) -> str:
    name = NAMES.get(layout.kind, "JSON lines")
    return f"{len(layout.files):,} {name} files" if len(layout.files) > 1 else name


def _splits(layout: Layout) -> tuple[str, ...]:
    """That several splits of a Hugging Face folder are read as one."""
    first = [file.name.rpartition("/")[2].partition("-")[0] for file in layout.files]
    splits = [name for name in dict.fromkeys(first) if name in ("train", "test", "validation")]
    if len(splits) < 2:
        return ()
    return (f"splits {', '.join(splits)} are read as one; give a glob for one of them",)


def _no_picture(layout: Layout, sample: Sample) -> RecipeError:
    return RecipeError(
        found="no column of links or of pictures among "
        + json.dumps(sample.table.column_names, ensure_ascii=False).strip("[]"),
        where=redacted(layout.path),
        do="name it: --url NAME for links (https://…), --image NAME for pictures in the file",
    )


def _refuse_answers(answers: Mapping[str, str], layout: Layout, why: str) -> None:
    for role in answers:
        raise RecipeError(f"--{role}, and {why}", redacted(layout.path), f"leave out --{role}")
