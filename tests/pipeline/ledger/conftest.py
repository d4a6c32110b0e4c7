"""Finished runs that more than one file of these tests asks."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.run_folder.state import RunState, latest
from tests import numbered
from tests.artefacts import linked
from tests.conftest import OWN_STAGES

FOX = "the quick brown fox jumps over the lazy dog"
NAMED = """
pool:
  {uses: ingest.url_list, path: none, uid_col: id, shard_rows: 3,
   extra: {group: string, near: string, cosine: float32}}
same:  {uses: dedup.exact, from: pool, columns: [group]}
alike: {uses: dedup.minhash, from: pool, min_jaccard: 0.5}
near:  {uses: probe.nearest, from: pool}
leaks: {uses: dedup.against, from: pool, tasks: none, compare: caption}
last:
  uses: select.where
  from: [same, alike, near, leaks]
  where: >
    same.duplicate_of IS NULL AND (joined_at IS NULL OR joined_at < 0.9)
    AND (earlier_cosine IS NULL OR earlier_cosine < 0.95) AND eval_overlap < 0.5
"""
ROWS = (  # caption, group, row that is near, cosine
    ("a red circle on white paper", "a", None, None),
    (FOX, "b", None, None),
    ("ein Haus am See", "a", 0, 0.5),
    (FOX, "c", None, None),
    ("x" * 100, "d", 1, 0.96875),
    ("and a dog with a green hat on", "e", 4, 0.25),
    ("z" * 300, "d", None, None),
)


def number(row: int) -> str:
    return f"{row + 0x10:032x}"


def write_named(folder):
    """Rows 2 and 6 are equal to 0 and 4; row 3 has 1's caption; 4 is near 1, 5 an evaluation's."""
    lines = [
        {
            **{"url": f"http://a.test/{row}", "id": number(row), "text": text, "group": group},
            **{"near": None if near is None else number(near), "cosine": cosine},
        }
        for row, (text, group, near, cosine) in enumerate(ROWS)
    ]
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "tasks").mkdir()
    task = pa.table({"key": ["a/7"], "text": ["a dog with a green hat"]})
    pq.write_table(task, folder / "tasks" / "dogs.parquet")


def run_named(folder):
    write_named(folder)
    numbered.run(folder, NAMED.replace("tasks: none", f"tasks: {folder / 'tasks'}"))


@pytest.fixture(scope="module")
def named(own_stages, artefacts) -> RunState:
    """A run whose rows name a keeper, or an evaluation sample."""
    folder = artefacts("named", run_named, OWN_STAGES, Path(numbered.__file__))
    return latest(str(folder / "run"))


STAGE = '''
"""A score that knows nothing but the caption's length."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

SCORE = Column("clip_score", pa.float32(), "", "Bytes of the caption.")


@dataclass(frozen=True, kw_only=True)
class Length(RowStage):
    """Bytes of the caption; null without one."""

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (SCORE,)

    def open(self, worker: Worker) -> RowFunction:
        return length


def length(batch: pa.Table) -> pa.Table:
    size = pc.binary_length(batch[TEXT.name]).cast(pa.float32())
    return pa.table({SCORE.name: size, REASON.name: pa.nulls(len(batch), REASON_TYPE)})
'''
RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: %s/metadata}
  length:  {uses: mine.length, from: pool}
  caption: {uses: annotate.caption, from: pool}
  subset:  {uses: select.where, from: [length, caption], where: caption_words >= 2}
  best:    {uses: select.where, from: [subset, length], top: {column: clip_score, fraction: 0.5}}
"""


@pytest.fixture(scope="module")
def planted(generated, tmp_path_factory):
    """A folder with a finished run, whose stage is the user's own."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "stages" / "mine").mkdir(parents=True)
    (folder / "stages" / "mine" / "length.py").write_text(STAGE)
    (folder / "it.yaml").write_text(RECIPE % generated)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(VARIABLE, "")  # to which the command adds
        assert main(["run", "it.yaml", "--out", "run", "--workers", "0"]) == 0
    return folder


@pytest.fixture
def ran(planted, tmp_path, monkeypatch):
    """That run, which may be written to."""
    monkeypatch.chdir(linked(planted, tmp_path / "planted"))
    return tmp_path / "planted" / "run"
