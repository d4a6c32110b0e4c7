"""Several selects as one, through the commands: counted, explained, exported, trained on."""

import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.selection.funnel import Funnel, funnel
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState
from clipmill.stages.towers.nano import ARCHITECTURES
from tests.pipeline.run_folder.test_masks import uid_of, write_pool
from tests.stages.clip.exported import TINY

ROWS = 32
TRAIN = "uses: train.clip, batch_size: 8, samples_seen: 72, warmup_steps: 1"
RECIPE = f"""
stages:
  pool:   {{uses: ingest.webdataset, path: POOL}}
  best:   {{uses: select.where, from: pool, where: "text NOT LIKE '%0'"}}
  reds:   {{uses: select.where, from: best, where: "text LIKE '%red%'"}}
  warm:   {{uses: select.where, from: best, where: "text LIKE '%red%' OR text LIKE '%blue%'"}}
  ones:   {{uses: select.where, from: pool, where: "text LIKE '%number 1%'"}}
  both:   {{uses: select.combine, from: [warm, ones], where: warm AND ones}}
  any:    {{uses: select.combine, from: [reds, ones], where: reds OR ones}}
  less:   {{uses: select.combine, from: [warm, reds], where: warm AND NOT reds}}
  union:  {{uses: select.combine, from: [reds, ones], repeats: {{reds: 1, ones: 2}}}}
  twice:  {{uses: select.combine, from: [union, warm], repeats: {{union: 2, warm: 1}}}}
  few:    {{uses: select.where, from: twice, where: "text NOT LIKE '%number 11%'"}}
  shards: {{uses: export.parquet, from: union, rows_per_shard: 12}}
  tars:   {{uses: export.webdataset, from: union}}
  uids:   {{uses: export.uid_list, from: union}}
  whole:  {{uses: export.parquet, from: pool}}
  copied: {{{TRAIN}, data: shards}}
  masked: {{{TRAIN}, data: whole, rows: union}}
  double: {{uses: export.parquet, from: few}}
"""


def text_of(number: int) -> str:
    return f"a {['red', 'green', 'blue', 'grey'][number % 4]} thing number {number}"


BEST = {n for n in range(ROWS) if not text_of(n).endswith("0")}
REDS = {n for n in BEST if "red" in text_of(n)}
WARM = {n for n in BEST if "red" in text_of(n) or "blue" in text_of(n)}
ONES = {n for n in range(ROWS) if "number 1" in text_of(n)}
UNION = {n: (n in REDS) + 2 * (n in ONES) for n in REDS | ONES}


@dataclass(frozen=True)
class Ran:
    state: RunState
    folder: Path

    def out(self, stage: str) -> Path:
        return Path(self.state.stages[stage].folder.path, "out")

    def kept(self, stage: str) -> set[int]:
        return {n for n in range(ROWS) if self.cell(stage, n, "keep")}

    def cell(self, stage: str, number: int, column: str):
        return self.state.cell(stage, number // 16, number % 16, [column])[column]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("combine")
    (folder / "it.yaml").write_text(RECIPE.replace("POOL", str(write_pool(folder / "pool"))))
    plan = make_plan(load_recipe(str(folder / "it.yaml"), []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "nano", TINY)  # trains in no time
        outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return Ran(outcome.state, folder / "run")


def test_and_or_and_minus_are_those_of_sets(ran):
    assert ran.kept("both") == WARM & ONES
    assert ran.kept("any") == REDS | ONES
    assert ran.kept("any") - BEST, "a row that `best` dropped is kept, as `ones` keeps it"
    assert ran.kept("less") == WARM - REDS
    assert ran.kept("union") == REDS | ONES
    assert {n: ran.cell("union", n, "repeats") for n in UNION} == UNION
    twice = {n: 2 * UNION.get(n, 0) + (n in WARM) for n in UNION.keys() | WARM}
    assert {n: ran.cell("twice", n, "repeats") for n in twice} == twice


def causes_of(found: Funnel, end: str) -> dict[tuple[str, str], int]:
    (one,) = (one for one in found.ends if one.stage == end)
    assert one.kept + sum(cause.rows for cause in one.causes) == ROWS
    return {(cause.stage, cause.reason): cause.rows for cause in one.causes}


def test_the_funnel_counts_each_row_at_the_select_that_dropped_it_first(ran):
    found = funnel(ran.state)
    assert [end.stage for end in found.ends] == ["both", "any", "less", "few"]
    warm = "text LIKE '%red%' OR text LIKE '%blue%'"
    best = "text NOT LIKE '%0'"
    assert causes_of(found, "both") == {
        ("best", best): ROWS - len(BEST),
        ("warm", warm): len(BEST - WARM),
        ("ones", "text LIKE '%number 1%'"): len(WARM - ONES),
    }
    assert causes_of(found, "any") == {
        ("best", best): ROWS - len(BEST | ONES),
        ("reds", "text LIKE '%red%'"): len(BEST - REDS - ONES),
    }
    assert causes_of(found, "less") == {
        ("best", best): ROWS - len(BEST),
        ("warm", warm): len(BEST - WARM),
        ("less", "kept_by:reds"): len(REDS),
    }
    assert causes_of(found, "few")["few", "text NOT LIKE '%number 11%'"] == 1


def test_why_names_the_select_that_decided_and_the_condition(ran, clipmill):
    green, red = (uid_of(number).hex() for number in (5, 4))
    said = clipmill("why", green, "--run", ran.folder, "-v").out
    before = "dropped by 'warm', before 'less': text LIKE '%red%' OR text LIKE '%blue%'; text is 'a"
    assert before in said
    assert "', the condition is warm AND NOT reds" in said
    assert "any  select.combine: dropped by 'reds'" in said
    said = clipmill("why", red, "--run", ran.folder).out
    assert "dropped by 'less': kept_by:reds; the condition is warm AND NOT reds" in said
    said = clipmill("funnel", "--run", ran.folder).out
    assert "less: kept by 'reds'" in said


def test_the_survey_shows_every_select_that_an_end_builds_on(ran):
    from clipmill.pipeline.ledger.rows.stored import selects_up_to

    names = [planned.name for planned in selects_up_to(ran.state, "any")]
    assert names == ["any", "reds", "ones", "best"]
    assert survey(ran.state, "any").stage == "any"


@pytest.mark.parametrize(
    ("combine", "found", "do"),
    [
        ("where: reds AND pink", "no stage 'pink'", "ancestors: "),
        ("where: reds AND less", "'less' is no ancestor of 'it'", "add it to `from`"),
        ("where: reds AND onse", "no stage 'onse'", "did you mean 'ones'"),
        ("where: reds AND pool", "'pool' writes no 'keep'", "'pool' writes"),
        ("where: NOT reds", "keeps rows that none of its selects keeps", "best AND NOT blurry"),
        ("repeats: {reds: 0}", "0", "at least 1"),
        ("repeats: {}", "repeats", "it.yaml"),
        ("repeats: {one: 1}", "no stage 'one'", "did you mean 'ones'?"),
    ],
)
def test_a_recipe_that_combines_what_is_not_there_is_refused(
    combine, found, do, ran, clipmill, tmp_path
):
    text = (ran.folder.parent / "it.yaml").read_text()
    line = f"  it: {{uses: select.combine, from: [reds, ones], {combine}}}\n"
    (tmp_path / "it.yaml").write_text(text + line)
    said = clipmill("plan", tmp_path / "it.yaml")
    assert said.code == 2
    assert found in said.err
    assert do in said.err
    assert f"it.yaml:{len(text.splitlines()) + 1}" in said.err


def test_exports_hold_a_row_as_often_as_its_weights_say(ran):
    exported = chain(
        *(pq.read_table(f).to_pylist() for f in sorted(ran.out("shards").glob("*.parquet")))
    )
    by_uid: Counter[bytes] = Counter()
    for row in exported:
        by_uid[row["uid"]] += row["repeats"]
    expected: Counter[bytes] = Counter()
    for number, times in UNION.items():
        expected[uid_of(number)] += times
    assert by_uid == expected
    listed = Counter(f"{a:016x}{b:016x}" for a, b in np.load(ran.out("uids") / "uids.npy").tolist())
    assert listed == {uid.hex(): times for uid, times in expected.items()}
    keys: Counter[str] = Counter()
    for path in ran.out("tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            keys.update({member.name.partition(".")[0] for member in tar})
    assert sum(keys.values()) == sum(UNION.values())
    thrice = next(n for n, times in UNION.items() if times == 3)
    uid = uid_of(thrice).hex()
    assert {f"{uid}-{copy}" for copy in range(3)} <= keys.keys()


def test_a_model_is_trained_on_a_row_as_often_as_its_weights_say(ran):
    models = [(ran.out(stage) / "model.safetensors").read_bytes() for stage in ("copied", "masked")]
    assert models[0] == models[1]
    assert json.loads((ran.out("copied") / "model.json").read_text())["rows"] == len(UNION)
