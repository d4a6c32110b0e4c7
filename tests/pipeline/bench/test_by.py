"""bench --by: the parts of an arm, pairs, weights learnt on half of the items, what is refused."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench import by
from clipmill.pipeline.bench.by import best_shares, split, with_learnt
from clipmill.pipeline.bench.prepare import prepared
from clipmill.pipeline.bench.spec import Arguments, Bench, Source, bench_of
from clipmill.pipeline.cli import main
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.proof.measured import Terms, halves, redrawn
from clipmill.pipeline.progress import Lines
from tests.pipeline.bench.conftest import draw_pool, run_over, tasks_of

SETS = ("batch_size=4", "samples_seen=12", "warmup_steps=1", "precision=float32")
STAGES = """
pool: {uses: ingest.image_folder, path: none}
web:  {uses: ingest.image_folder, path: OTHER}
all:  {uses: ingest.union, from: [pool, web], images: true}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run over two sources, of 13 rows with a caption and of 8; a folder of tasks."""
    folder = tmp_path_factory.mktemp("by")
    for name, rows in {"pool": 14, "other": 9}.items():
        (folder / name).mkdir()
        draw_pool(folder / name, rows)
    run_over(folder / "pool", folder / "run", STAGES.replace("OTHER", str(folder / "other")))
    tasks_of(folder / "tasks")
    return folder


def asked(place, by="source", sets=SETS, **more) -> Bench:
    arms = more.pop("arms", (f"all={place}/run:all",))
    arguments = Arguments(arms=arms, tasks=str(place / "tasks"), sets=sets, seeds=1, **more)
    return split(bench_of(arguments, None, str(place / "bench")), by)


def prepare(bench: Bench, out):
    watcher = Lines()
    try:
        return prepared(bench, Storage(str(out)), LocalExecutor(0), watcher)
    finally:
        watcher.over.set()


def test_each_value_is_an_arm_and_counts_add_up(place, tmp_path):
    bench = asked(place)
    assert list(bench.rows) == ["all", "pool", "web", "pool_and_web"]
    assert split(bench, "source") is bench
    ready = prepare(bench, tmp_path / "bench")
    rows = {name: ready.rows[name].rows for name in bench.rows}
    assert rows == {"all": 21, "pool": 13, "web": 8, "pool_and_web": 21}
    assert ready.what("web").endswith("run:all where source is web")
    assert ready.chance_of("web") == "random_of_8_in_all"
    uids = {n: pq.read_table(tmp_path / f"bench/arms/{n}.parquet")["shard"] for n in rows}
    assert set(uids["pool"].to_pylist()).isdisjoint(uids["web"].to_pylist())
    mixed = pq.read_table(tmp_path / "bench/arms/pool_and_web.parquet")
    drawn = mixed["repeats"].to_numpy() @ np.isin(mixed["shard"], uids["web"])
    assert drawn / mixed["repeats"].to_numpy().sum() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"by": "sauce"}, "sauce"),
        ({"by": ":pool,web"}, "no column"),
        ({"by": "source:pool"}, "1 values; 2 to 6 can be compared"),
        ({"by": "source:pool,pool"}, "2 values; 2 to 6"),
        ({"by": "source:pool,sea"}, "no row whose source is 'sea'"),
        ({"by": "text"}, "11 values; 2 to 6 can be compared"),
        ({"by": "text:number 1,disc"}, "'number 1' as an arm's name: begin with a letter"),
        ({"by": "image_bytes"}, "image_bytes"),
        ({"arms": ("a={}/run:all", "b={}/run:pool")}, "a bench 2 arms of runs"),
        ({"arms": ("pool_and_web={}/run:all",)}, "'pool_and_web' is a mixture's name and an arm's"),
        ({"arms": ("learnt={}/run:all",)}, "learnt is the bench's own name"),
        ({"hold_out": "pool"}, "--by and --hold-out together"),
    ],
)
def test_what_cannot_be_split_is_refused(place, more, found):
    if "arms" in more:
        more = {"arms": tuple(arm.format(place) for arm in more["arms"])}
    with pytest.raises(RecipeError) as error:
        asked(place, **more)
    assert found in " ".join(error.value.args)


def test_a_value_of_fewer_rows_than_a_batch_is_refused_with_its_name(place, tmp_path):
    bench = asked(place, sets=("batch_size=9", "samples_seen=18", "warmup_steps=1"))
    with pytest.raises(RecipeError, match="8 rows with a picture and a caption; a batch has 9"):
        prepare(bench, tmp_path / "bench")


def test_a_column_of_very_many_values_is_not_counted_to_the_end(place, monkeypatch):
    monkeypatch.setattr(by, "MANY", 5)
    with pytest.raises(RecipeError, match="text has more than 5 values"):
        asked(place, by="text")


def bench_of_three() -> Bench:
    parts = {name: Source(kind="stage", run="r", stage="s", value=name) for name in "abc"}
    return Bench(scale="nano", seeds=1, tasks="t", by="source", rows=parts)


def test_weights_are_where_the_polynomial_through_singles_and_pairs_is_highest():
    """Scheffé's: a and b gain .4 each by the other at most, so .5 and .5; c is worse with all."""
    pairs = {"a_and_b": 0.5, "a_and_c": 0.2, "b_and_c": 0.2}
    score = {"a": 0.4, "b": 0.4, "c": 0.1, **pairs}
    assert best_shares(bench_of_three(), score) == {"a": 0.5, "b": 0.5}
    # Where b is .2: .4 w + .2 (1 - w) + .8 w (1 - w) is highest at w = .625: .6 before .7.
    tilted = score | {"b": 0.2}
    assert best_shares(bench_of_three(), tilted) == pytest.approx({"a": 0.6, "b": 0.4})
    alone = dict.fromkeys(pairs, 0.1) | {"a": 0.4, "b": 0.3, "c": 0.2}
    assert best_shares(bench_of_three(), alone) == {"a": 1.0}


def test_halves_share_no_item_and_miss_none():
    (half_2N,) = halves(1_000, 7)
    assert half_2N.sum(axis=0).tolist() == [1] * 1_000
    assert 450 < half_2N[0].sum() < 550
    above_K = np.random.default_rng(0).random(1_000)
    terms = Terms(np.arange(1_000), above_K, np.array([0]))
    (found_2,) = redrawn([terms], 7, halves)
    expected = [above_K[half_N > 0].mean() for half_N in half_2N]
    np.testing.assert_allclose(found_2, expected, rtol=1e-5)


def test_nothing_is_learnt_twice_nor_without_a_column():
    bench = bench_of_three()
    learnt = {**bench.rows, "learnt": Source(kind="mix", shares={"a": 0.5, "b": 0.5})}
    for known in (Bench(**{**vars(bench), "by": ""}), Bench(**{**vars(bench), "rows": learnt})):
        assert with_learnt(SimpleNamespace(bench=known), None) is known


@pytest.mark.chaos
def test_one_command_trains_sources_pairs_and_the_learnt_mixture(place, capsys, monkeypatch):
    monkeypatch.setattr(by, "best_shares", lambda *_: {"pool": 0.7, "web": 0.3})
    out = place / "whole"
    sets = [word for each in SETS for word in ("--set", each)]
    command = ["bench", f"all={place}/run:all", "--by", "source", "--tasks", str(place / "tasks")]
    command += ["--seeds", "1", "--workers", "0", "--out", str(out), *sets]
    assert main([*command, "--estimate"]) == 0
    # raw, all, pool, web, pool_and_web, two by chance; then learnt and as many by chance
    assert "9 trainings at most" in capsys.readouterr().out
    assert main(command) == 0
    said = capsys.readouterr().out
    rows = pq.read_table(out / "leaderboard.parquet").to_pylist()
    assert {row["arm"] for row in rows} >= {"all", "pool", "web", "pool_and_web", "learnt"}
    assert "weights learnt on half of the items: pool 70 %, web 30 %; on the other half" in said
    table = [line.split() for line in said.splitlines() if line.startswith(("web ", "pool "))]
    assert [line for line in table if len(line) == 4]  # the arm, its mean and both tasks
    assert "weights learnt on half" in (out / "leaderboard.md").read_text()
    assert main(["bench", "--out", str(out), "--workers", "0"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out
