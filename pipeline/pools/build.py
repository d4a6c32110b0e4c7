"""Builds a pool: plans its rows, draws them in worker processes, writes metadata and truth.

DIR/metadata  DIR/www  DIR/truth.parquet  DIR/trusted/metadata  DIR/eval, and pool.json last: a
folder without it is unfinished, and the next build starts over. All bytes depend only on kind,
seed, port, rows, overlaid and library versions.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.evaluation import EvaluationSet, evaluation_captions, write_set
from clipmill.pipeline.pools.faults import UNLISTENED_PORT, behaviour
from clipmill.pipeline.pools.generated import (
    SOURCE,
    generated_drawings,
    generated_evaluation,
    generated_sets,
)
from clipmill.pipeline.pools.plan import Row, pool_rows
from clipmill.pipeline.pools.render import Made, make_files
from clipmill.pipeline.pools.server import BEHAVIOUR
from clipmill.pipeline.pools.trusted import trusted_pairs, without, write_trusted
from clipmill.pipeline.pools.truth import truth_table, write_metadata
from clipmill.pipeline.target import refuse_others
from clipmill.pipeline.terminal import bars

Kind = Literal["demo", "full", "generated"]
Progress = Callable[[str, int, int], None]  # (description, done, total)

LAYOUT = 2  # raise it when a kind and seed would give other bytes
UNFINISHED = "unfinished"  # marks a folder as ours until pool.json is written
FOLDERS = ("metadata", "trusted", "eval", "www", "packages", "held_out", "lists")
GENERATED_ROWS = 600
PARALLEL_FROM = 3_000  # rows; with fewer, starting workers costs more than it saves


@dataclass(frozen=True)
class Material:
    """The drawings and counts that a pool is made from."""

    drawings: Sequence[Drawing]
    evaluation: Sequence[Drawing]
    sets: Sequence[EvaluationSet]
    trusted_sources: frozenset[str]
    trusted: int
    oversized: int
    bombs: int
    rows: int | None = None
    packages: Sequence[str] = ()


def build_pool(
    kind: Kind,
    out: Path,
    seed: int = 0,
    workers: int | None = None,
    port: int = 8765,
    rows: int | None = None,
    overlaid: float = 0.0,
) -> dict[str, int]:
    """Builds the pool in `out`, unless it is there complete; returns its counts.

    `overlaid` is the share of otherwise clean first rows with words or a mark over the picture.
    """
    facts: dict[str, Any] = {"kind": kind, "seed": seed, "port": port, "layout": LAYOUT}
    if rows is not None and kind != "generated":
        raise RecipeError(
            found=f"rows={rows} for the {kind} pool, whose size its packages fix",
            where="clipmill pool",
            do="leave it out, or build the generated pool",
        )
    if rows is not None and rows < 1:
        raise RecipeError(
            found=f"rows={rows}", where="clipmill pool generated", do="ask for 1 row or more"
        )
    if not 0 <= overlaid <= 1:
        raise RecipeError(f"overlaid={overlaid}", "clipmill pool", "ask for a share, 0 to 1")
    if kind == "generated":
        facts["rows"] = rows or GENERATED_ROWS
    facts["overlaid"] = overlaid or None  # left out of pool.json where no share was asked for
    if stored := stored_counts(out, facts):
        return stored
    clear(out)
    with shown_progress() as progress:
        material = _material(kind, seed, facts.get("rows"), progress)
        counts = _build(material, out, seed, workers, port, overlaid, progress)
    facts |= {"packages": list(material.packages), "counts": counts}
    facts = {key: fact for key, fact in facts.items() if fact is not None}
    (out / "pool.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / UNFINISHED).unlink()
    return counts


def _material(kind: Kind, seed: int, rows: int | None, progress: Progress) -> Material:
    if kind == "generated":
        count = rows or GENERATED_ROWS
        evaluation = generated_evaluation(max(60, count // 10), seed)
        return Material(
            drawings=generated_drawings(int(count * 1.4) + 40, seed),
            evaluation=evaluation,
            sets=generated_sets(evaluation),
            trusted_sources=frozenset({SOURCE}),
            trusted=count // 6,
            oversized=1,
            bombs=1,
            rows=count,
        )
    from clipmill.pipeline.pools.sources import noto, packages  # late: a drawn pool needs none

    drawings, names = packages.drawings(kind, progress)
    evaluation, sets = noto.evaluation()
    return Material(
        drawings=drawings,
        evaluation=evaluation,
        sets=sets,
        trusted_sources=packages.TRUSTED,
        trusted=2_000,
        oversized=2,
        bombs=4 if kind == "demo" else 8,
        packages=names,
    )


def _build(
    material: Material,
    out: Path,
    seed: int,
    workers: int | None,
    port: int,
    overlaid: float,
    progress: Progress,
) -> dict[str, int]:
    """Writes all but pool.json; returns the counts for it."""
    www = out / "www"
    forbidden = frozenset(
        caption for drawing in material.evaluation for caption in evaluation_captions(drawing)
    )
    pairs = trusted_pairs(
        material.drawings, material.trusted_sources, material.trusted, forbidden, seed
    )
    drawings = without(material.drawings, [pair.drawing for pair in pairs])
    groups = pool_rows(
        drawings,
        material.evaluation,
        seed,
        material.oversized,
        material.bombs,
        material.rows,
        overlaid,
    )
    planned = sum(map(len, groups))
    workers = workers or (_own_processors() if planned >= PARALLEL_FROM else 1)
    with _mapper(workers) as spread:
        files: dict[str, Made] = {}
        light = [_without_translations(group) for group in groups]
        for number, written in enumerate(spread(partial(make_files, www=www), light), 1):
            files |= {file.uid: file for file in written}
            progress("drawing pictures", number, len(groups))
        trusted = list(spread(partial(write_trusted, www=www, port=port), pairs))
    rows = [row for group in groups for row in group if row.uid in files]
    write_metadata([_metadata(row, files[row.uid], port) for row in rows], out / "metadata")
    write_metadata([pair for pair in trusted if pair], out / "trusted" / "metadata")
    truth = truth_table(sorted(rows, key=lambda row: row.uid), files)
    pq.write_table(truth, out / "truth.parquet")
    acts: dict[str, dict[str, Any]] = {}
    for row in rows:
        acts |= behaviour(row.link_issue, files[row.uid].path, row.chance)
    (www / BEHAVIOUR).write_text(json.dumps(acts, indent=0, sort_keys=True) + "\n")
    for evaluation in material.sets:
        write_set(evaluation, out / "eval")
    return {
        "rows": len(rows),
        "good": sum(truth["is_good"].to_pylist()),
        "trusted": sum(pair is not None for pair in trusted),
        "undrawable": planned - len(rows),
    }


def _without_translations(group: Sequence[Row]) -> list[Row]:
    """Returns a worker's rows in English only: 26 languages would be most of the bytes sent."""
    drawing = group[0].drawing
    english = {lang: words for lang, words in drawing.words.items() if lang == "en"}
    return [replace(row, drawing=replace(drawing, words=english)) for row in group]


def _metadata(row: Row, file: Made, port: int) -> dict[str, object]:
    host = f"127.0.0.1:{port}"
    if row.link_issue == "unresolvable":
        host = f"{row.site}.invalid"  # a reserved name that never resolves
    elif row.link_issue == "refused":
        host = f"127.0.0.1:{UNLISTENED_PORT}"
    return {
        "uid": row.uid,
        "url": f"http://{host}/{file.path}",
        "text": row.text,
        "original_width": file.width,
        "original_height": file.height,
        "sha256": file.sha256,
    }


def stored_counts(out: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the counts of a complete pool in `out`, or None; RecipeError for another pool."""
    try:
        stored = json.loads((out / "pool.json").read_text())
    except (OSError, ValueError):
        return None
    if {key: stored.get(key) for key in facts} == facts:
        counts: dict[str, Any] = stored["counts"]
        return counts
    named = ", ".join(f"{key} {stored.get(key)}" for key in facts)
    raise RecipeError(
        found=f"another pool stands there ({named})",
        where=str(out),
        do="choose another --out, or delete that folder",
    )


def clear(out: Path, folders: Sequence[str] = FOLDERS) -> None:
    """Empties `out` and marks it as ours; RecipeError if it holds other files."""
    if not (out / UNFINISHED).exists():
        refuse_others(Storage(str(out)), (), "give --out a new folder, or an empty one")
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()
    for folder in folders:
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "truth.parquet").unlink(missing_ok=True)  # another kind of pool may write none
    (out / "www").mkdir(exist_ok=True)


def _own_processors() -> int:
    """Returns the number of processors that this process may use."""
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields an ordered `map`: over spawned processes, or in this one for `workers` = 1."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield partial(processes.map, chunksize=16)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Shows a bar for each kind of work on a terminal; else prints a line when it is done."""
    if not sys.stderr.isatty():

        def tell(what: str, done: int, total: int) -> None:
            if done == total:
                print(f"{what}: {total:,}", file=sys.stderr)

        yield tell
        return
    with bars() as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield show
