"""Describes data whose pictures are files in folders or tars."""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from clipmill.metadata.globs import files_of
from clipmill.metadata.keys import redacted
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data.data import Data, shard_rows
from clipmill.pipeline.own_data.layouts import (
    Layout,
    dataset_card,
    is_metadata,
    stem_of,
    suffix_of,
)
from clipmill.pipeline.own_data.roles import roles_of
from clipmill.pipeline.own_data.sample import parquet_sample, text_sample


def pictures(layout: Layout, answers: Mapping[str, str]) -> Data:
    """Describes a folder of pictures, with captions in other files."""
    kinds = answers.get("caption", "")
    if "{class}" in kinds:
        answers = {role: name for role, name in answers.items() if role != "caption"}
    tables = [name for name in layout.beside if is_metadata(name)]
    caption = _caption_of(layout, tables[0], answers) if tables else None
    if not tables:
        _refuse_answers(answers, layout, "pictures have no columns")
    stems = {stem_of(name) for name in layout.beside if name.lower().endswith(".txt")}
    folders = tuple(name.rpartition("/")[0] for name in tables) if caption else ()
    with_caption = sum(
        stem_of(file.name) in stems
        or any(not folder or file.name.startswith(f"{folder}/") for folder in folders)
        for file in layout.files
    )
    rows = len(layout.files)
    settings: dict[str, Any] = {"caption_col": caption} if caption not in (None, "text") else {}
    where_captions = (
        f"captions in {tables[0].rpartition('/')[2]}"
        if caption
        else "captions in a .txt beside each"
    )
    notes: tuple[str, ...] = ()
    if "{class}" in kinds:
        settings["caption"] = kinds
        where_captions, with_caption = "captions of their folders' names", rows
    elif not with_caption:
        where_captions = "no captions"
        notes = ("a caption is a .txt beside its picture: cat.jpg, cat.txt",)
        if any("/" in file.name for file in layout.files):
            notes += ('folders that are classes:  --caption "a photo of a {class}"',)
    elif with_caption < rows:
        notes = (f"pictures without a file for their caption: {rows - with_caption:,}",)
    return Data(
        path=layout.path,
        what=f"folder of pictures, {where_captions}",
        uses="ingest.image_folder",
        settings={**settings, "shard_rows": shard_rows(rows)},
        rows=rows,
        columns={"caption": caption} if caption else {},
        has_captions=bool(with_caption),
        aside=layout.aside,
        notes=notes,
    )


def _caption_of(layout: Layout, name: str, answers: Mapping[str, str]) -> str | None:
    """Returns the caption column of the metadata file beside pictures, or None."""
    (file,) = (file for file in files_of(layout.storage.uri) if file.name == name)
    if name.endswith(".parquet"):
        table = parquet_sample(layout.storage, [file]).table
    else:
        table = text_sample(layout.storage, [file], suffix_of(name)).table
    named = [column for column in table.column_names if column != "file_name"]
    return roles_of(table.select(named), answers, f"{layout.storage}/{name}").caption


def start_of(values: Sequence[Any], names: Set[str], table: str) -> str | None:
    """Returns the folder where most paths of a table start, or None; its own comes first.

    `names` are the pictures below the folder that holds the table, too.
    """
    own = table.rpartition("/")[0]
    wanted = [posixpath.normpath(str(value).strip().replace("\\", "/")) for value in values]
    if 2 * sum(posixpath.join(own, value) in names for value in wanted) > len(wanted):
        return own
    by_base: dict[str, list[str]] = {}
    for name in names:
        by_base.setdefault(name.rpartition("/")[2], []).append(name)
    starts = Counter(
        name.removesuffix(value).rstrip("/")
        for value in wanted
        for name in by_base.get(value.rpartition("/")[2], ())
        if f"/{name}".endswith(f"/{value}")
    )
    best, count = max(starts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return best if 2 * count > len(wanted) else None


def tars(layout: Layout, answers: Mapping[str, str]) -> Data:
    _refuse_answers(answers, layout, "tars have no columns")
    stats = [name for name in layout.beside if name.endswith("_stats.json")]
    card = dataset_card(layout.storage)
    rows: int | None = None
    if card is not None:
        rows = int(str(card.get("rows", 0)))
    elif len(stats) == len(layout.files):
        counts = [layout.storage.read_json(name, dict[str, Any]) or {} for name in stats]
        rows = sum(int(count.get("successes", 0)) for count in counts)
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


def _refuse_answers(answers: Mapping[str, str], layout: Layout, why: str) -> None:
    for role in answers:
        raise RecipeError(f"--{role}, and {why}", redacted(layout.path), f"leave out --{role}")
