"""`data: shards, rows: best`: one export read under a select, joined by shard and position."""

import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import is_places, read_places
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.live import live_run
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.verbs.funnel import text
from clipmill.pipeline.verbs.status import text as status
from clipmill.stages.towers.nano import ARCHITECTURES
from tests.engine_stages.harness import clipmill_run, meaning
from tests.stages.clip.exported import TINY, row

TRAIN = "uses: train.clip, batch_size: 8, samples_seen: 24, warmup_steps: 1"
RECIPE = """
stages:
  pool:   {uses: ingest.webdataset, path: POOL}
  reds:   {uses: select.where, from: pool, where: "text LIKE '%red%'"}
  bright: {uses: select.where, from: pool, where: "text NOT LIKE '%grey%'"}
  listed: {uses: select.uid_list, from: pool, path: LIST}
  shards: {uses: export.parquet, from: pool, rows_per_shard: 12}
"""
MASKED = f"""
  on_reds:   {{{TRAIN}, data: shards, rows: reds}}
  on_listed: {{{TRAIN}, data: shards, rows: listed}}
"""
COPIED = f"""
  red_shards:    {{uses: export.parquet, from: reds}}
  from_reds:     {{{TRAIN}, data: red_shards}}
  listed_shards: {{uses: export.parquet, from: listed}}
  from_listed:   {{{TRAIN}, data: listed_shards}}
"""
LISTED = {number: 1 + number % 3 for number in range(9, 25)}  # row to how often it is listed
ROWS, TWICE = 32, {8: 1}  # row 8 has the uid of row 1: a red thing, and a green one


def uid_of(number: int) -> bytes:
    return row(TWICE.get(number, number))["uid"]


def write_pool(folder: Path) -> Path:
    """Two tars: two shards."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard * ROWS // 2, (shard + 1) * ROWS // 2):
                made = row(number)
                uid = json.dumps({"uid": uid_of(number).hex()}).encode()
                caption = made["texts"][0]["text"].encode()
                for suffix, data in (("png", made["image"]), ("json", uid), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@dataclass(frozen=True)
class Runs:
    """A pool, a list of uids, and a folder of runs over them."""

    pool: Path
    list: Path
    out: Path

    def write_list(self, times: dict[int, int]) -> None:
        lines = [uid_of(number).hex() for number, n in times.items() for _ in range(n)]
        self.list.write_text("\n".join(lines))

    def plan(self, stages: str, *changed: str) -> Plan:
        whole = (RECIPE + stages).replace("POOL", str(self.pool)).replace("LIST", str(self.list))
        recipe = self.out.with_suffix(".yaml")
        recipe.write_text(whole)
        return make_plan(load_recipe(str(recipe), changed))

    def run(self, stages: str, *changed: str) -> Outcome:
        plan = self.plan(stages, *changed)
        return run_plan(plan, Storage(str(self.out)), LocalExecutor(0), Lines())

    def written(self) -> dict[str, int]:
        """Every file of the stages by name, and when it was written."""
        files = (self.out / "stages").rglob("*")
        return {
            str(file.relative_to(self.out / "stages")): file.stat().st_mtime_ns
            for file in files
            if file.is_file()
        }


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    """A network that trains in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "nano", TINY)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Runs, RunState]:
    """Trainings on one export under two selects, and on an export of each."""
    folder = tmp_path_factory.mktemp("masks")
    runs = Runs(write_pool(folder / "pool"), folder / "list.txt", folder / "run")
    runs.write_list(LISTED)
    outcome = runs.run(MASKED + COPIED)
    assert outcome.complete, outcome.stopped
    return runs, outcome.state


@pytest.fixture
def copy(whole, tmp_path) -> Runs:
    """The same folder, to be changed."""
    runs, _ = whole
    shutil.copytree(runs.out, tmp_path / "run")
    return replace(runs, out=tmp_path / "run")


def out(state: RunState, stage: str, file: str) -> bytes:
    return state.stages[stage].folder.read(f"out/{file}")


def places(state: RunState, stage: str) -> set[tuple[int, int]]:
    outputs = Outputs(state.stages[stage].folder)
    found = [read_places(outputs, name) for name in outputs.names if is_places(name)]
    return {tuple(place) for place in np.concatenate(found).tolist()}


def kept(state: RunState, stage: str) -> dict[tuple[int, int], int]:
    """How often each row counts that a training reads under its mask."""
    mask = state.mask(state.plan.stages[stage])
    assert mask is not None
    outputs = Outputs(mask.export)
    found = {}
    for name in filter(is_places, outputs.names):
        times_N = mask.times(name.replace(".places.npy", ".parquet"))
        rows = zip(read_places(outputs, name).tolist(), times_N.tolist(), strict=True)
        found |= {tuple(place): times for place, times in rows if times}
    return found


def changed(runs: Runs, before: dict[str, int]) -> set[str]:
    """The stages of which a file is new or was written again."""
    now = runs.written()
    return {file.partition("-")[0] for file in now if now[file] != before.get(file)}


def test_a_subset_of_one_export_trains_the_model_that_an_export_of_it_trains(whole):
    _, state = whole
    for masked, copied in (("on_reds", "from_reds"), ("on_listed", "from_listed")):
        one, other = (out(state, stage, "model.safetensors") for stage in (masked, copied))
        assert one == other
        cards = [json.loads(out(state, stage, "model.json")) for stage in (masked, copied)]
        assert cards[0]["rows"] == cards[1]["rows"]
        assert cards[0]["left_out"]["not_kept"] == ROWS - cards[0]["rows"]


def test_rows_are_joined_by_place_though_a_uid_is_in_two_rows(whole):
    _, state = whole
    assert kept(state, "on_reds") == dict.fromkeys(places(state, "red_shards"), 1)
    assert kept(state, "on_reds").keys() == {(n // 16, n % 16) for n in range(0, ROWS, 4)}


def test_a_row_counts_as_often_as_the_select_says(whole):
    _, state = whole
    listed = {(n // 16, n % 16): times for n, times in LISTED.items()}
    assert kept(state, "on_listed") == listed
    assert listed.keys() == places(state, "listed_shards")


def test_another_select_over_the_same_export_runs_the_reader_alone(copy):
    before = copy.written()
    assert copy.run(MASKED, "reds.where=text LIKE '%red%' OR text LIKE '%blue%'").complete
    assert changed(copy, before) == {"reds", "on_reds"}


def test_other_verdicts_of_the_same_select_run_the_reader_again(copy, whole):
    runs, _ = whole
    before = copy.written()
    told, text = runs.list.stat(), runs.list.read_bytes()
    try:
        copy.write_list({**LISTED, 9: 3})
        outcome = copy.run(MASKED)
    finally:  # as it was, for the other tests
        runs.list.write_bytes(text)
        os.utime(runs.list, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert outcome.complete
    assert changed(copy, before) == {"listed", "on_listed"}
    assert kept(outcome.state, "on_listed")[0, 9] == 3


def test_kept_rows_that_the_export_lacks_are_counted(copy):
    stages = f"""
  half:     {{uses: export.parquet, from: bright}}
  on_half:  {{{TRAIN}, data: half, rows: warm}}
  warm:     {{uses: select.where, from: pool, where: "text LIKE '%red%' OR text LIKE '%grey%'"}}
"""
    outcome = copy.run(stages)
    assert outcome.complete, outcome.stopped
    (subset,) = funnel(outcome.state).subsets
    assert (subset.kept, subset.read, subset.lacking) == (16, 8, 8)
    told = "on_half: 8 of the 16 rows that 'warm' keeps, read from 'half', which lacks 8"
    assert told in text(funnel(outcome.state), {"pool"})
    assert "rows of 'warm' in 'half'" in status(live_run(outcome.state, "complete"), 0.0)
    assert json.loads(out(outcome.state, "on_half", "model.json"))["rows"] == 8


EXPORTS = """
  red_again: {uses: export.parquet, data: shards, rows: reds}
  red_tars:  {uses: export.webdataset, from: reds}
  same_tars: {uses: export.webdataset, data: shards, rows: reds}
  listed_again: {uses: export.parquet, data: shards, rows: listed}
  all_again: {uses: export.parquet, data: shards}
  nested:    {uses: export.parquet, data: all_again, rows: reds}
"""


def test_an_export_of_an_export_under_a_select_holds_the_rows_of_an_export_of_the_select(copy):
    outcome = copy.run(COPIED + EXPORTS)
    assert outcome.complete, outcome.stopped
    state = outcome.state
    for one, other in (
        *(("red_again", "red_shards"), ("listed_again", "listed_shards")),
        *(("all_again", "shards"), ("nested", "red_shards")),
    ):
        assert rows_in(state, one) == rows_in(state, other)
    told = ("place", "uid", "caption", "status")
    one, other = (
        [{name: row[name] for name in told} for row in rows_in(state, stage)]
        for stage in ("red_tars", "same_tars")
    )
    assert one == other
    counts = {export.stage: export for export in funnel(state).exports}["red_again"]
    assert (counts.rows, counts.exported, counts.left) == (32, 8, {"not_kept": 24})


def test_a_column_that_the_export_lacks_is_said_with_those_it_has(copy):
    more = "\n  more: {uses: export.parquet, data: shards, columns: [language]}\n"
    assert copy.run(more).stopped["more"].args == (
        "no column 'language' in the export",
        "stage 'more', key `columns`",
        "add it to the export's `columns`; it has uid, uid_hex, image, caption, texts, repeats,"
        " loss_weight, sample_index",
    )


def rows_in(state: RunState, stage: str) -> list[dict]:
    """The rows of an export by place, with their places; not their numbers, which are in the order
    of the files."""
    outputs = Outputs(state.stages[stage].folder)
    found = []
    for name in filter(is_places, outputs.names):
        with outputs.parquet(name.replace(".places.npy", ".parquet")) as parquet:
            rows = parquet.read().drop_columns(["sample_index"]).to_pylist()
        places = read_places(outputs, name).tolist()
        found += [{"place": place, **row} for place, row in zip(places, rows, strict=True)]
    return sorted(found, key=lambda row: row["place"])


def test_an_export_of_an_older_version_is_read_whole_and_not_under_a_select(copy, whole):
    _, state = whole
    folder = Path(state.stages["red_shards"].folder.path)
    folder = copy.out / "stages" / folder.name
    manifest = json.loads((folder / "manifest.json").read_text())["value"]
    for name in [name for name, _ in manifest["outputs"] if is_places(name)]:
        (folder / "out" / name).unlink()
    manifest["outputs"] = [file for file in manifest["outputs"] if not is_places(file[0])]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = copy.written()
    assert copy.run(COPIED).complete
    assert changed(copy, before) == set()
    masked = f"""
  again: {{{TRAIN}, data: red_shards, rows: reds}}
  tars:  {{uses: export.webdataset, data: red_shards}}
"""
    outcome = copy.run(COPIED + masked)
    for reader in ("again", "tars"):
        found, where, do = outcome.stopped[reader].args
        assert found.startswith("no 00000.places.npy")
        assert where.endswith("00000.parquet")
        assert str(folder) in do
    shutil.rmtree(folder)
    before = copy.written()
    assert copy.run(COPIED + masked).complete
    assert changed(copy, before) == {"red_shards", "again", "tars"}, (
        "from_reds read the same export"
    )


def test_an_export_that_is_damaged_where_its_places_are_is_made_again(copy, whole):
    _, state = whole
    folder = copy.out / "stages" / Path(state.stages["shards"].folder.path).name
    file = folder / "out" / "00000.places.npy"
    held = file.read_bytes()
    file.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    more = f"\n  more: {{{TRAIN}, data: shards, rows: bright}}\n"
    assert copy.run(MASKED + more).complete
    assert file.read_bytes() == held


@pytest.mark.soak(cpu_s=30)
def test_killed_while_it_reads_and_run_again_the_files_are_those_of_a_calm_run(whole, tmp_path):
    runs, _ = whole
    recipe = runs.out.with_suffix(".yaml")
    runs.plan(MASKED.replace("warmup_steps: 1", "warmup_steps: 1, checkpoint_steps: 1"))
    calm = clipmill_run(recipe, tmp_path / "calm", tmp_path / "points")
    assert calm.code == 0, calm.output
    expected = meaning(Storage(str(tmp_path / "calm")))
    reading = [n for n, point in enumerate(calm.points, 1) if "cache/" in point]
    steps = [
        n
        for n, point in enumerate(calm.points, 1)
        if point.startswith("step ") and "/checkpoints/" in point
    ]
    for number in (reading[1], steps[1]):
        out = tmp_path / str(number)
        killed = clipmill_run(recipe, out, tmp_path / f"{number}-f", fault=f"any:{number}")
        assert killed.killed, killed.output
        assert clipmill_run(recipe, out, tmp_path / f"{number}-again").code == 0
        assert meaning(Storage(str(out))) == expected
