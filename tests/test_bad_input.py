"""What bad rows, files and pools get: a clear message, nothing lost, neighbours untouched.

Wrong recipes: test_bad_recipes. Bad images: test_bad_images.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.pools.chance import hex_id

RECIPE = """
stages:
  pool:    {uses: ingest.datacomp, path: none, shard_rows: 100, scores: true}
  caption: {uses: annotate.caption, from: pool}
  lang:    {uses: annotate.language, from: pool}
  subset:
    uses: select.where
    from: [caption, lang]
    where: caption_words >= 2 AND clip_l14_similarity_score > 0.2
    top: {column: clip_l14_similarity_score, fraction: 0.5}
  uids:    {uses: export.uid_list, from: subset}
"""


def rows(count: int, first: int = 0) -> list[dict]:
    """Rows of a DataComp pool; each is kept or not by its number alone."""
    return [
        {
            "uid": hex_id("row", str(number)),
            "url": f"http://a.test/{number}",
            "text": f"a caption {number}",
            "original_width": 64,
            "original_height": 48,
            "sha256": "0" * 64,
            "clip_b32_similarity_score": np.float32(0.25),
            "clip_l14_similarity_score": np.float32(0.1 + number % 4 / 10),
            "face_bboxes": [[0.0, 0.0, 0.5, 0.5]],
        }
        for number in range(first, first + count)
    ]


class Run:
    """A pool of files, a recipe and a run folder."""

    def __init__(self, folder: Path, clipmill) -> None:
        self.pool, self.out, self.recipe = folder / "pool", folder / "run", folder / "it.yaml"
        self.pool.mkdir()
        self.recipe.write_text(RECIPE)
        self._clipmill = clipmill

    def put(self, name: str, table: list[dict] | pa.Table) -> Path:
        table = pa.Table.from_pylist(table) if isinstance(table, list) else table
        pq.write_table(table, self.pool / name)
        return self.pool / name

    def run(self, *arguments: object):
        sets = ["--set", f"pool.path={self.pool}", "--workers", 0]
        return self._clipmill("run", self.recipe, "--out", self.out, *sets, *arguments)

    def ask(self, verb: str, *arguments: object):
        return self._clipmill(verb, *arguments, "--run", self.out, "--json").json

    def reasons(self, stage: str) -> dict[str, int]:
        """Rows of a stage by reason, of all kinds."""
        (found,) = (s for s in self.ask("funnel")["stages"] if s["stage"] == stage)
        return found["failed"] | found["upstream"] | found["dropped"]

    def kept(self) -> list[str]:
        """The uids that the export lists."""
        (file,) = self.out.glob("stages/uids-*/out/uids.npy")
        return [f"{high:016x}{low:016x}" for high, low in np.load(file).tolist()]

    def made(self) -> dict[str, int]:
        """When each data file and record was written, by stage and name."""
        return {
            f"{path.parent.name.partition('-')[0]}/{path.name}": path.stat().st_mtime_ns
            for path in self.out.glob("stages/*/0*")
        }


@pytest.fixture
def it(tmp_path, clipmill) -> Run:
    return Run(tmp_path, clipmill)


# Files


@pytest.mark.parametrize("column", ["uid", "url", "text", "clip_l14_similarity_score"])
def test_a_parquet_without_a_needed_column_stops_the_stage_by_name(column, it):
    it.put("good.parquet", rows(4))
    it.put("zbad.parquet", pa.Table.from_pylist(rows(4, 4)).drop_columns([column]))
    said = it.run()
    assert said.code == 1
    assert f"'{column}'" in said.out.splitlines()[0]
    assert f"where: {it.pool}/zbad.parquet" in said.out


def test_a_truncated_parquet_fails_its_shard_by_name_and_is_redone_alone(it):
    for number in range(3):
        it.put(f"{number}.parquet", rows(40, 40 * number))
    whole = (it.pool / "1.parquet").read_bytes()
    (it.pool / "1.parquet").write_bytes(whole[:-100])
    said = it.run()
    assert said.code == 1
    assert "pool, shard 1: a file that cannot be read" in said.out
    assert f"where: {it.pool}/1.parquet" in said.out
    assert "not complete: pool, caption, lang, subset, uids" in said.out
    (status, *later) = it.ask("status")["stages"]
    assert [status["shards"], len(status["failures"])] == [2, 1]
    assert [stage["shards"] for stage in later] == [2, 2, 0, 0], "the others went on"
    before = it.made()

    (it.pool / "1.parquet").write_bytes(whole)
    assert it.run().code == 0
    after = it.made()
    redone = {name for name in before if after.get(name) != before[name]}
    assert redone == {"pool/000001.failed.json"}
    shards = {name for name in after if name.startswith(("pool/", "caption/", "lang/"))}
    assert {name.split("/")[1][:6] for name in shards - before.keys()} == {"000001"}
    assert len(it.kept()) == 30, "half of the half that passes"


def test_the_status_of_a_run_with_a_failed_shard_reads_well(it, clipmill):
    it.put("0.parquet", rows(4))
    (it.pool / "1.parquet").write_bytes(b"PAR1 and no more")
    it.run()
    text = clipmill("status", "--run", it.out).out
    assert "\n! pool    failed: shard 1: a file that cannot be read" in text
    assert "\n! caption stopped at 1 of ? shards, 4 rows\n" in text
    assert "\n0 of 5 stages done, 1 failed, 2 stopped" in text
    assert f"\n  where: {it.pool}/1.parquet\n" in text
    assert "None" not in text


def test_a_changed_file_redoes_its_shard_alone(it):
    for number in range(2):
        it.put(f"{number}.parquet", rows(40, 40 * number))
    assert it.run().code == 0
    before = it.made()
    it.put("1.parquet", rows(40, 400))
    assert it.run().code == 0
    now = it.made()
    same = {name for name in before if now.get(name) == before[name]}
    assert {name for name in before if "/000000" in name} - same <= {
        name for name in before if name.startswith(("subset/", "uids/"))
    }
    assert set(it.kept()) <= {row["uid"] for row in (*rows(40), *rows(40, 400))}


def test_files_without_rows_are_shards_without_rows(it):
    empty = pa.Table.from_pylist(rows(1)).slice(0, 0)
    it.put("0.parquet", empty)
    it.put("1.parquet", rows(8))
    it.put("2.parquet", empty)
    assert it.run().code == 0
    assert [s["shards"] for s in it.ask("status")["stages"]] == [3, 3, 3, 3, 0]
    assert len(it.kept()) == 2


def test_a_pool_of_no_rows_gives_empty_exports_and_a_funnel_of_zeros(it):
    it.put("0.parquet", pa.Table.from_pylist(rows(1)).slice(0, 0))
    said = it.run()
    assert said.code == 1
    assert said.out.startswith("nothing is kept: the pool has no rows\n")
    assert it.kept() == []
    (end,) = it.ask("funnel")["ends"]
    assert end == {"stage": "subset", "rows": 0, "kept": 0, "causes": []}


def test_a_pool_of_no_files_stops_the_run(it):
    said = it.run()
    assert said.code == 2
    assert "no file that ends in .parquet" in said.err
    assert f"--set pool.path={it.pool}" in said.err


def test_a_selection_that_keeps_nothing_is_complete_and_ends_with_1(it, clipmill):
    it.put("0.parquet", rows(8))
    said = it.run("--set", "subset.where=caption_words > 99")
    assert said.code == 1
    assert said.out.startswith("0 of 8 rows kept by 'subset': subset: caption_words > 99 took 8\n")
    assert it.kept() == []
    assert "0   0.0%  kept by 'subset'" in clipmill("funnel", "--run", it.out).out
    (card,) = it.out.glob("stages/uids-*/out/dataset.json")
    assert json.loads(card.read_text())["rows"] == 0


# Rows


def test_a_repeated_uid_is_kept_in_both_places_and_counted(it):
    twice = rows(8)[3]
    it.put("0.parquet", [*rows(8), twice])
    it.put("1.parquet", [*rows(8, 8), {**twice, "text": "another caption"}])
    assert it.run().code == 0
    assert it.kept().count(twice["uid"]) == 3
    found = it.ask("why", twice["uid"])
    assert found["copies"] == 3
    assert found["stages"][0]["values"]["text"] == "a caption 3"


def test_odd_captions_are_counted_and_fail_no_neighbour(it):
    odd = {
        1: None,
        2: "",
        3: " \n\t ",
        5: "word " * 200_000,
        6: "\ud7ff\U0010ffff\0 null\0",
        7: "a",
    }
    table = [{**row, "text": odd.get(i, row["text"])} for i, row in enumerate(rows(8))]
    it.put("0.parquet", table)
    assert it.run().code == 1  # none of these scores is kept
    assert it.reasons("caption") == {"no_text": 1}
    assert it.reasons("lang") == {"no_text": 1, "empty_text": 2}
    long = it.ask("why", table[5]["uid"])
    assert long["stages"][0]["values"]["text"].endswith("… (1000000 characters)")
    assert long["stages"][1]["values"]["caption_words"] == 200_000
    assert it.ask("why", table[7]["uid"])["ends"][0]["reason"] == "caption_words >= 2"


def test_nan_and_null_scores_are_undefined_and_nothing_passes_them(it):
    score = "clip_l14_similarity_score"
    odd = {2: np.float32("nan"), 3: None, 6: np.float32("inf"), 7: np.float32("-inf")}
    table = [{**row, score: odd.get(i, row[score])} for i, row in enumerate(rows(8))]
    it.put("0.parquet", table)
    assert it.run("--set", "subset.top.fraction=1").code == 0
    assert it.reasons("subset") == {f"{score} > 0.2": 5, f"undefined:{score}": 2}
    assert it.kept() == [table[6]["uid"]]
    assert it.ask("why", table[2]["uid"])["ends"][0]["reason"] == f"undefined:{score}"


def test_a_stage_of_ones_own_that_reads_another_type_is_refused(it, own_stages):
    it.put("0.parquet", rows(8))
    it.recipe.write_text(
        RECIPE + "  odd: {uses: probe.copy, from: pool, column: original_width, to: a}\n"
    )
    said = it.run()  # original_width is int32, and the stage reads int64
    assert said.code == 2
    assert "pool.original_width is int32, and 'original_width' is int64" in said.err


# The run folder


def test_another_seed_is_refused(it):
    it.put("0.parquet", rows(8))
    assert it.run().code == 0
    before = it.made()
    said = it.run("--set", "seed=1")
    assert said.code == 2
    assert "seed 1, and this run has seed 0" in said.err
    assert "--set seed=0" in said.err
    assert it.made() == before
