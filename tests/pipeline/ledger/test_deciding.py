"""What decided of a row: its value beside each threshold, how far, and its rank; where it lies."""

import hashlib
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows import pictures as picture_place
from clipmill.pipeline.ledger.selection.verdict import Deciding
from clipmill.pipeline.ledger.selection.why import why, whys
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.verbs.why import text
from tests import numbered

pytestmark = pytest.mark.usefixtures("own_stages")
STAGES = """
pool:  {uses: ingest.url_list, path: none, extra: {a: int64}, shard_rows: 7}
one:   {uses: probe.copy, from: pool, column: a, to: b, unlucky: 5}
best:
  uses: select.where
  from: [pool, one]
  where: b > 3 AND b < 19.5
  top: {column: a, rows: 6}
some:  {uses: select.sample, from: best, rows: 4}
mixed: {uses: score.mix, from: [pool, one], weights: {a: 2, b: -1}, scale: min_max}
few:   {uses: select.where, from: mixed, top: {column: mix_score, rows: 3}}
"""
PASSING = [row for row in numbered.ROWS if row > 3 and row % 5]  # 20 has no number either
KEPT = sorted(PASSING)[-6:]


@pytest.fixture(scope="module")
def state(own_stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbered")
    numbered.write_pool(folder)
    return numbered.run(folder, STAGES)


def of(state, row: int) -> dict[str, Deciding]:
    ends = {end.stage: end for end in why(state, numbered.uid(row)).ends}
    return {it.sign: it for it in ends["best"].deciding}


def ranked(row: int) -> Deciding:
    return Deciding(
        stage="best",
        column="a",
        value=row,
        sign=">=",
        limit=KEPT[0],
        apart=row - KEPT[0],
        rank=sorted(PASSING, reverse=True).index(row) + 1,
        ranked=len(PASSING),
        kept=6,
    )


def test_a_row_that_others_beat_is_told_its_rank_and_what_it_would_have_taken(state):
    for row in set(PASSING) - set(KEPT):
        assert of(state, row) == {">=": ranked(row)}
    said = text(why(state, numbered.uid(7)))
    assert "a 7 is 6 below 13, the least that 'best' keeps; it ranks 11 of 13, and 6 stay" in said

    large = replace(ranked(7), value=1_234_567, limit=1_234_568, apart=-1)
    found = why(state, numbered.uid(7))
    ends = tuple(replace(end, deciding=(large,)) for end in found.ends)
    assert "a 1,234,567 is 1 below 1,234,568" in text(replace(found, ends=ends))


def test_a_mixture_names_the_parts_that_spoke_for_a_row_and_against_it(state):
    top = why(state, numbered.uid(19)).ends[-1].sentence
    assert top == "kept by 'few'; for its a (+1.00), in spite of its b (-0.50)"
    low = why(state, numbered.uid(1)).ends[-1].sentence
    assert low.endswith(", for its a (-1.00), in spite of its b (+0.50)"), low
    assert "for its" not in why(state, numbered.uid(5)).ends[-1].sentence  # it has no mixture


def test_a_row_that_stays_is_told_of_every_threshold(state):
    for row in KEPT:
        found = of(state, row)
        assert found[">="] == ranked(row)
        assert (found[">"].limit, found[">"].apart) == (3, row - 3)
        assert (found["<"].limit, found["<"].apart) == (19.5, row - 19.5)


def test_a_row_that_breaks_a_rule_is_told_of_that_rule_alone(state):
    assert of(state, 2) == {
        ">": Deciding(stage="best", column="b", value=2, sign=">", limit=3, apart=-1)
    }
    assert "b 2 is 1 below 3; 'best' keeps > 3" in text(why(state, numbered.uid(2)))
    assert of(state, 5) == {}  # it has no value


def test_a_row_that_stands_at_the_threshold_is_told_so(state):
    assert "b 3 is at 3; 'best' keeps > 3" in text(why(state, numbered.uid(3)))


def test_of_equal_values_the_smaller_uid_ranks_first(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    lines = (tmp_path / "pool.jsonl").read_text().splitlines()
    tied = [line.replace('"a": 18', '"a": 17') for line in lines]
    tied = [
        re.sub(r'"a": (\d+)', lambda a: f'"a": {2**60 + 999 * int(a[1])}', line) for line in tied
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(tied))
    state = numbered.run(tmp_path, STAGES.replace("AND b < 19.5", ""))
    ranks = {row: of(state, row)[">="].rank for row in (17, 18)}
    first, second = sorted((17, 18), key=numbered.uid)
    assert (ranks[first], ranks[second]) == (2, 3)


def test_a_comparison_that_decided_otherwise_is_left_out(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    stages = "pool: {uses: ingest.url_list, path: none, extra: {a: int64}}\n"
    where = "where: '(a > 5 AND a < 9) OR a IN (2, 12)'"
    state = numbered.run(tmp_path, f"{stages}best: {{uses: select.where, from: pool, {where}}}")
    found = {
        row: {(it.sign, it.limit) for it in why(state, numbered.uid(row)).ends[-1].deciding}
        for row in (2, 7, 10)
    }
    assert found[2] == {("=", 2), ("<", 9)}
    assert found[7] == {(">", 5), ("<", 9)}
    assert found[10] == {("<", 9)}  # the bounds that its rule quotes


def test_a_row_that_a_condition_drops_has_no_rank(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    stages = "pool: {uses: ingest.url_list, path: none, extra: {a: int64}}\n"
    where = "where: a % 2 = 0 AND NOT (a = 8), top: {column: a, rows: 6}"
    state = numbered.run(tmp_path, f"{stages}best: {{uses: select.where, from: pool, {where}}}")
    found = {row: why(state, numbered.uid(row)).ends[-1].deciding for row in (6, 7, 8)}
    evens = [row for row in numbered.ROWS if row % 2 == 0 and row not in (8, 20)]
    ranks = [(it.rank, it.ranked) for it in found[6] if it.rank]
    assert ranks == [(evens[::-1].index(6) + 1, len(evens))]
    assert not any(it.rank for row in (7, 8) for it in found[row])


def test_whole_numbers_up_to_2_64_are_ranked_and_shown_as_they_are(own_stages, tmp_path):
    numbered.write_pool(tmp_path)
    lines = (tmp_path / "pool.jsonl").read_text()
    large = re.sub(r'"a": (\d+)', lambda a: f'"a": {2**64 - 20 + int(a[1])}', lines)
    (tmp_path / "pool.jsonl").write_text(large)
    stages = "pool: {uses: ingest.url_list, path: none, extra: {a: uint64}}\n"
    stages += "best: {uses: select.where, from: pool, top: {column: a, rows: 6}}"
    said = text(why(numbered.run(tmp_path, stages), numbered.uid(7)))
    assert f"a {2**64 - 13:,} is 7 below {2**64 - 6:,}, the least" in said
    assert "it ranks 13 of 19, and 6 stay" in said


def test_a_picture_that_the_run_holds_lies_in_a_row_of_a_file(own_stages, tmp_path):
    for number in range(3):
        pixels = np.full((40, 40, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"grey number {number}")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "3.txt").write_text("grey number 3")
    pool = {"uses": "ingest.image_folder", "path": str(tmp_path)}
    recipe = Recipe(name="grey", path="grey.yaml", seed=0, stages={"pool": pool})
    run = Storage(str(tmp_path / "run"))
    state = run_plan(make_plan(recipe), run, LocalExecutor(0), Lines()).state
    for found in whys(state, ["number 2", "number 0"]):
        place = found.picture
        body = (tmp_path / place.url).read_bytes()
        table = pq.read_table(place.file, columns=["image"])
        assert table["image"][place.row].as_py() == body
        assert place.bytes == len(body)
        assert f"picture: row {place.row} of {place.file}  ({len(body)} bytes)" in text(found)


def test_a_picture_that_a_later_pass_brought_lies_in_its_file(tmp_path):
    table = pa.table({"position": pa.array([4, 9], pa.int32())})
    pq.write_table(table, tmp_path / "new.parquet")
    later = f"000000.p1-{hashlib.sha256((tmp_path / 'new.parquet').read_bytes()).hexdigest()}"
    (tmp_path / "new.parquet").rename(tmp_path / f"{later}.parquet")
    files = ("000000.parquet", f"{later}.parquet")
    stage = SimpleNamespace(shards={0: SimpleNamespace(files=files)})
    state = SimpleNamespace(
        stages={"it": stage}, stored={"it": SimpleNamespace(folder=Storage(str(tmp_path)))}
    )
    assert picture_place._file(state, "it", (0, 9)) == (f"{later}.parquet", 1)
    assert picture_place._file(state, "it", (0, 5)) == ("000000.parquet", 5)
