"""Notes: what stages say, one host or source, and rows that a model scores and learnt from."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.ledger.findings import notes as notes_
from clipmill.pipeline.ledger.findings.notes import notes
from clipmill.pipeline.ledger.summary import summary
from clipmill.pipeline.report.build import report
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.verbs._summary_page import text
from tests.parsed import Page

pytestmark = pytest.mark.usefixtures("own_stages")
STAGES = """
stages:
  trusted: {uses: ingest.datacomp, path: trusted, shard_rows: 3}
  pool:    {uses: ingest.datacomp, path: pool, shard_rows: 3}
  learn:   {uses: probe.learn, from: trusted, says: ["4 rows\\nare few"]}
  apply:   {uses: probe.apply, from: pool, model: "stage:learn"}
  few:     {uses: select.where, from: pool, where: "text = 'row 1'"}
  own:     {uses: probe.learn, from: few}
  again:   {uses: probe.apply, from: pool, model: "stage:own"}
  longest: {uses: select.where, from: again, top: {column: length, fraction: 0.5}}
  long:    {uses: select.where, from: again, where: length > 3}
  parts:   {uses: probe.learn, from: few, folds: 2}
  apart:   {uses: probe.apply, from: pool, model: "stage:parts"}
  whole:   {uses: probe.learn, from: pool}
  itself:  {uses: probe.apply, from: pool, model: "stage:whole"}
"""
BOTH = """
stages:
  trusted: {uses: ingest.datacomp, path: trusted, shard_rows: 3}
  pool:    {uses: ingest.datacomp, path: pool, shard_rows: 3}
  few:     {uses: select.where, from: pool, where: "text = 'row 2'"}
  learn:   {uses: probe.learn, from: [trusted, pool]}
  apply:   {uses: probe.apply, from: pool, model: "stage:learn"}
  part:    {uses: probe.learn, from: [trusted, few]}
  again:   {uses: probe.apply, from: pool, model: "stage:part"}
  best:    {uses: select.where, from: trusted, where: "text = 'row 21'"}
  twice:   {uses: probe.learn, from: [trusted, best, pool]}
"""
MIXED = """
stages:
  trusted: {uses: ingest.datacomp, path: trusted, shard_rows: 30}
  pool:    {uses: ingest.datacomp, path: pool, shard_rows: 30}
  both:    {uses: ingest.union, from: [trusted, pool]}
  words:   {uses: annotate.caption, from: both}
  g:       {uses: select.where, from: both, where: "source = 'trusted'"}
  a:       {uses: select.where, from: both, where: "url LIKE '%a.test%'"}
  b:       {uses: select.where, from: both, where: "url LIKE '%5'"}
  source:  {uses: score.mix, from: [words, g], learn: {columns: [caption_chars], good: g.keep}}
  host:    {uses: score.mix, from: [words, a], learn: {columns: [caption_chars], good: a.keep}}
  several: {uses: score.mix, from: [words, b], learn: {columns: [caption_chars], good: b.keep}}
"""


@pytest.fixture
def state(tmp_path, monkeypatch, clipmill):
    """A run of ten rows of a pool, with trusted rows of these numbers from these hosts."""

    def run(trusted=range(20, 24), hosts=("shop.test",), stages=STAGES, rows=range(10)):
        monkeypatch.chdir(tmp_path)
        for name, numbers, sites in (
            ("pool", rows, ("a.test", "b.test")),
            ("trusted", trusted, hosts),
        ):
            rows = [
                {
                    "uid": f"{number:032x}",
                    "url": f"http://{sites[number % len(sites)]}/{number}",
                    "text": f"row {number}",
                    "sha256": None if number == 9 else f"{number:064x}",
                }
                for number in numbers
            ]
            (tmp_path / name).mkdir()
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "0.parquet")
        (tmp_path / "it.yaml").write_text(stages)
        said = clipmill("run", "it.yaml", "--out", "run", "--workers", "0")
        assert said.code == 0, said.err
        return latest(str(tmp_path / "run"))

    return run


def test_what_a_stage_says_stands_at_the_end_of_a_run_beside_what_its_pool_shows(
    state, monkeypatch
):
    answer = summary(state())
    assert answer.notes.keys() == {"learn", "again"}  # the pools are apart
    own, host = answer.notes["learn"]
    assert own == "4 rows\nare few"
    assert "one host, shop.test: " in host
    said = text(answer, "clipmill run it.yaml --out run", True)
    assert "\nnotes\n  learn: 4 rows are few\n" in said
    assert "learn: 4 rows are few" in Page(report(latest("run"))).text
    monkeypatch.setattr(notes_, "MOST_ROWS", 3)  # a large pool is not looked through
    monkeypatch.setattr(notes_, "tables", None)
    assert notes(latest("run"))["learn"] == (own,)


@pytest.mark.parametrize("hosts", [("shop.test", "other.test"), ("127.0.0.1:80",)])
def test_neither_two_hosts_nor_a_server_of_ones_own_are_told(hosts, state):
    assert len(notes(state(hosts=hosts))["learn"]) == 1


def test_pictures_that_a_model_learnt_from_and_scores_are_counted(state):
    found = notes(state(trusted=(3, 4, 9, 21, 22)))
    assert "2 of its rows have pictures that 'learn' learnt from" in found["apply"][0]
    (some,) = found["again"]
    assert some.startswith("'own' learnt from some of these rows: expect")
    assert some.endswith("; 'longest' ranks them among others: `folds` scores all alike")
    assert found.keys() == {"learn", "apply", "again"}  # a whole pool with its own model: meant


def test_pictures_that_trusted_pairs_and_a_pool_that_teaches_have_in_common_are_counted(state):
    found = notes(state(trusted=(3, 4, 9, 21, 22), hosts=("a.test", "b.test"), stages=BOTH))
    (twice,) = found["apply"]
    assert twice.startswith("2 of its rows have pictures that 'learn' learnt from twice: expect")
    assert "take them out of 'pool' or of 'trusted'" in twice
    _, some = found["again"]
    assert some.startswith("'part' learnt from some of these rows: expect")
    assert found.keys() == {"apply", "again"}


def test_trusted_pairs_of_one_host_beside_a_pool_are_told_with_what_they_add(state):
    found = notes(state(hosts=("a.test",), stages=BOTH, rows=range(0, 10, 2)))
    (host,) = found["learn"]
    assert host.startswith("all rows of trusted are of one host, a.test: ")
    assert "as if the pool alone had taught" in host
    (alone,) = found["twice"]  # of three stages over two roots, whose rows no stage scores by it
    assert alone.startswith("all rows it learnt from are of one host, a.test: ")
    assert found.keys() == {"learn", "part", "again", "twice"}


def test_good_rows_of_one_source_or_host_that_a_mixture_learnt_from_are_told(state):
    found = notes(state(range(1000, 1100), ("a.test", "c.test"), MIXED, range(95, 300)))
    (source,), (host,) = found["source"], found["host"]
    assert source.startswith("all good rows are of one source, trusted, and others are not: ")
    assert host.startswith("all good rows are of one host, a.test, and others are not: ")
    assert found.keys() == {"source", "host"}
