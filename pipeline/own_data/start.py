"""Makes a recipe from a path and a few answers; plans it and reads first rows."""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pyarrow as pa

from clipmill.metadata.schema import IMAGE, REASON, TEXT, UID, Derived
from clipmill.pipeline.errors import ClipmillError, RecipeError, did_you_mean
from clipmill.pipeline.own_data.data import Data, UnsureError
from clipmill.pipeline.own_data.look import look_at
from clipmill.pipeline.own_data.recipe import Wish, starter
from clipmill.pipeline.own_data.servers import captioner
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.stage import DatasetStage, RowFunction, RowStage, Worker

LOOKED_AT = 1000  # rows without pictures
PICTURES = 100  # rows with pictures, which are decoded
NO_CAPTION = "no caption"
SCORES = "--score COLUMN (a column of numbers), --model MODEL, or --trusted DATA (pairs that fit)"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request: the data, their columns, how to score, how much to keep."""

    path: str
    columns: Mapping[str, str]  # role to column
    pictures: str | None = None  # folder where the paths of a table start
    table: str | None = None  # of a database with several
    score: str | None = None
    model: str | None = None
    trusted: str | None = None
    keep: float | None = None
    captions: str | None = None  # the model that writes more; auto: that of a server here
    to: tuple[str, ...] = ("parquet",)
    folder: str = "."  # of the recipe
    moving: frozenset[str] = frozenset()  # paths that are kept relative to it


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The first rows, with uid and reason, and why some cannot be used."""

    rows: pa.Table
    unusable: dict[str, int]  # first cause to rows

    @property
    def looked_at(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Data, their first rows, and a recipe for them."""

    data: Data
    preview: Preview
    recipe: str  # its text
    paths: tuple[str, str]  # the data's, as a recipe in that folder may have it


def start(request: Request, made_by: str, run_as: str) -> Start:
    """Makes a recipe, plans it and reads its first rows; UnsureError for an open question."""
    data = look_at(request.path, request.columns, request.pictures, request.table)
    wish = wish_of(request, data)
    text = starter(data, wish, made_by, run_as)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8")
        recipe = load_recipe(str(path))
    recipe.path = "the recipe for it"  # shown in errors: the file is gone
    plan = make_plan(recipe)
    try:
        rows = preview_of(plan, data.has_captions)
    except ClipmillError as error:  # of a stage; here the data are an argument
        raise RecipeError(*error.args) from None
    paths = data.path, _beside(data.path, request.folder)
    data = _moved(data, request, request.path, request.pictures or request.path)
    if wish.trusted:
        trusted = _moved(wish.trusted, request, request.trusted, request.trusted)
        wish = replace(wish, trusted=trusted)
    text = starter(data, wish, made_by, run_as)
    return Start(data=data, preview=rows, recipe=text, paths=paths)


def _moved(data: Data, request: Request, path: str | None, pictures: str | None) -> Data:
    """Returns data with those of their paths relative to the recipe that were given so."""
    if path in request.moving:
        data = replace(data, path=_beside(data.path, request.folder))
    if "pictures" in data.settings and pictures in request.moving:
        there = _beside(data.settings["pictures"], request.folder)
        data = replace(data, settings=data.settings | {"pictures": there})
    return data


def _beside(path: str, folder: str) -> str:
    """Returns a path as a recipe in the folder has it, so that they move together."""
    if "://" in path:
        return path
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("../") else f"./{relative}"


def wish_of(request: Request, data: Data) -> Wish:
    """Returns the recipe's goals; RecipeError if they conflict or the data do not suffice."""
    if request.keep is not None and not 0 < request.keep <= 1:
        do = "write a share above 0 and up to 1: 0.3 keeps the best 30 %"
        raise RecipeError(f"--keep {request.keep:g}", "the arguments", do)
    ways = [way for way in ("score", "model", "trusted") if getattr(request, way)]
    if len(ways) > 1:
        do = "give one of them"
        raise RecipeError(f"{' and '.join(f'--{way}' for way in ways)}", "the arguments", do)
    if not data.has_captions and (request.model or request.trusted):
        do = f"leave out --{ways[0]}: it scores how well captions fit"
        raise RecipeError("data without captions", data.path, do)
    captions = captioner(request.captions) if request.captions else None
    if captions and captions.sees is False and not data.has_captions:
        do = "name a model that takes pictures"
        raise RecipeError(f"data without captions, and {captions.model}", data.path, do)
    score = request.score
    if score and score not in data.scores:
        do = did_you_mean(score, data.scores, "columns of numbers here")
        raise RecipeError(f"no column of numbers '{score}'", "--score", do)
    if request.keep is not None and not ways:
        if not data.scores:
            do = f"give what to rank by: {SCORES}"
            raise RecipeError(f"--keep {request.keep:g}, and no score", data.path, do)
        if len(data.scores) > 1:
            do = f"say which: --score {data.scores[0]}"
            raise UnsureError("score", dict.fromkeys(data.scores, ""), data.path, do)
        score = data.scores[0]
    return Wish(
        score=score,
        model=request.model,
        trusted=_trusted(request.trusted) if request.trusted else None,
        keep=request.keep,
        captioner=captions,
        to=request.to,
    )


def _trusted(path: str) -> Data:
    """Identifies the trusted pairs that a filter network learns from."""
    try:
        data = look_at(path, {})
    except UnsureError as unsure:
        found, where, _ = unsure.args
        do = "leave one of them in the data that are trusted"
        raise RecipeError(found, f"--trusted {where}", do) from None
    if not data.has_captions:
        raise RecipeError("trusted data without captions", path, "give pairs: a caption each")
    return data


def preview_of(plan: Plan, has_captions: bool) -> Preview:
    """Reads the first rows of a starter recipe's pool as a run does; ClipmillError if it cannot."""
    pool = plan.stages["pool"].stage
    assert isinstance(pool, DatasetStage)
    has_pictures = any(column.name == IMAGE.name for column in pool.writes)
    rows = pool.head(PICTURES if has_pictures else LOOKED_AT)
    causes = rows[REASON.name].cast(pa.string()).to_pylist()
    if has_captions:
        texts = rows[TEXT.name].to_pylist()
        causes = [
            cause or (None if text and text.strip() else NO_CAPTION)
            for cause, text in zip(causes, texts, strict=True)
        ]
    if has_pictures and len(rows):
        broken = _reasons(plan, "look", rows)
        causes = [cause or reason for cause, reason in zip(causes, broken, strict=True)]
    return Preview(rows=rows, unusable=dict(Counter(cause for cause in causes if cause)))


def _reasons(plan: Plan, name: str, rows: pa.Table) -> list[str | None]:
    """Returns the reason that a row stage gives for each row."""
    stage = plan.stages[name].stage
    assert isinstance(stage, RowStage)
    batch = {UID.name: rows[UID.name]}
    for column in stage.reads:
        assert not isinstance(column, str)
        values = rows[column.source.name] if isinstance(column, Derived) else rows[column.name]
        batch[column.name] = column.derive(values) if isinstance(column, Derived) else values
    place = Worker(seed=plan.seed, stage=name, device="cpu", threads=1, scratch=Path())
    function = cast(RowFunction, stage.open(place))  # it does not stream
    answer = function(pa.table(batch))
    reasons: list[str | None] = answer[REASON.name].cast(pa.string()).to_pylist()
    return reasons
