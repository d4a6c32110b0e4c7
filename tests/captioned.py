"""Recipes of captions on a tiny pool: run to an export, and what their checks and selects said."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server


@contextlib.contextmanager
def served_pool(folder: Path, rows: int) -> Iterator[Path]:
    """A pool without the rows whose link hangs, and its server, at a port of its own."""
    build_pool("generated", folder, rows=rows)
    truth = pl.read_parquet(folder / "truth.parquet")
    slow = truth.filter(pl.col("link_issue").is_in(["timeout", "slow", "hang"]))["uid"].to_list()
    with start_server(folder) as address:
        for path in folder.glob("metadata/*.parquet"):
            url = pl.col("url").str.replace("http://127.0.0.1:8765", address, literal=True)
            rows_there = pl.read_parquet(path).filter(~pl.col("uid").is_in(slow))
            rows_there.with_columns(url).write_parquet(path)
        yield folder


def run_recipe(clipmill, recipe: str, pool: Path, out: Path, until: str, *settings: str) -> None:
    """`clipmill run`, which must end well."""
    quick = [f"pool.path={pool}/metadata", "images.timeout_s=1", "images.deadline_s=2"]
    overrides = [word for setting in (*quick, *settings) for word in ("--set", setting)]
    said = clipmill("run", recipe, "--out", out, "--workers", 0, "--until", until, *overrides)
    assert said.code == 0, said.err


def judged(run: Path, select: str) -> list[dict[str, Any]]:
    """Rows of a select of captions: what it wrote, and as `read` the texts that it read."""
    read = _stored(run, "checked", "texts").select("uid", read="texts")
    return _stored(run, select, "fell_back").join(read, on="uid").to_dicts()


def _stored(run: Path, stage: str, column: str) -> pl.DataFrame:
    """The rows of a stage, from its files that have the column."""
    tables = map(pl.read_parquet, run.glob(f"stages/{stage}-*/*.parquet"))
    return pl.concat(table for table in tables if column in table.columns)
