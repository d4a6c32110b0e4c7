"""An S3-compatible store: the same results as on a disk, kills, and a store that fails."""

import json
import math
import re
import time
from dataclasses import replace

import pytest

from clipmill.metadata import storage
from clipmill.metadata.keys import redacted
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.run import Outcome, run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.claim import refuse_foreign
from clipmill.pipeline.run_folder.live import status
from tests.chaos.flaky import Trouble
from tests.engine_stages.harness import STAGES, meaning, toy_stages

KINDS = (
    "run",
    "recipe",
    "origin",
    "lock",
    "attempt",
    "write",
    "rename",
    "record",
    "digest",
    "journal",
    "index",
    "step",
    "copy",
    "compaction",
    "manifest",
    "session",
)
REDONE = 2  # units at most, as on a disk


@pytest.fixture(scope="session")
def undisturbed(nursery, bucket, tmp_path_factory):
    """How a run ends that nothing disturbs, and what is there then: on a disk and here."""
    local = tmp_path_factory.mktemp("local") / "run"
    assert nursery.run(local).code == 0
    uri = bucket.uri("undisturbed")
    ended = nursery.run(uri)
    assert ended.code == 0, ended.output
    return ended, meaning(Storage(uri)), meaning(Storage(str(local)))


# Storage


def test_a_folder_of_others_is_refused_there_too(bucket):
    folder = Storage(bucket.uri("of-others"))
    refuse_foreign(folder)  # nothing there
    folder.put("photos/2019/cat.jpg", b"", point="rename")
    with pytest.raises(RecipeError, match="holds other files: photos"):
        refuse_foreign(folder)
    folder.put("run.json", b"{}", point="run")
    refuse_foreign(folder)


def test_what_is_put_is_read_back_listed_and_deleted(bucket):
    folder = Storage(bucket.uri("storage"))
    for name in ("b", "x/c", "x/y/d"):
        folder.put(name, name.encode(), point="rename")
    assert folder.read("x/y/d") == b"x/y/d"
    assert folder.open("b").read() == b"b"
    assert [(entry.name, entry.size) for entry in folder.entries()] == [("b", 1)]
    assert folder.folders() == ["x"]
    assert folder.child("x").read("c") == b"x/c"
    assert folder.read_if_there("none") is None
    assert folder.entries("none") == []
    folder.delete("b")
    folder.delete("b")
    folder.delete_folder("x")
    folder.delete_folder("x")
    assert folder.entries() == []
    assert folder.read_if_there("x/y/d") is None


def test_a_large_object_is_whole(bucket):
    folder = Storage(bucket.uri("large"))
    data = bytes(range(256)) * (25 << 12)  # 25 MiB: several parts of an upload
    folder.put("large", data, point="rename")
    assert folder.read("large") == data
    with folder.open("large") as file:
        file.seek(20 << 20)
        assert file.read(3) == b"\x00\x01\x02"


@pytest.mark.parametrize(("most", "reads"), [(4, 1), (5, 0)], ids=["through here", "by the store"])
def test_an_object_is_copied_whatever_its_size(bucket, proxy, monkeypatch, most, reads):
    Storage(bucket.uri("made")).put("out/model", b"seven", point="rename")
    monkeypatch.setattr(storage, "COPIED_BYTES", most)
    proxy.troubles = [read := Trouble("GET .*/model", times=1)]
    through = replace(bucket, port=proxy.port)
    run = Storage(through.uri("copied"))
    run.put_copy("copy", Storage(through.uri("made")), "out/model")
    assert (run.read("copy"), read.met) == (b"seven", reads)


# Runs


@pytest.mark.chaos  # it asks about a run that the kills need too
def test_objects_are_those_of_a_local_run(undisturbed):
    _, here, local = undisturbed
    assert here == local


@pytest.mark.chaos  # it asks about a run that the kills need too
def test_a_second_run_does_nothing_again(undisturbed, nursery, bucket):
    again = nursery.run(bucket.uri("undisturbed"))
    assert again.code == 0
    assert again.units == 0
    assert meaning(Storage(bucket.uri("undisturbed"))) == undisturbed[1]


@pytest.mark.drawn(cases=3, cpu_s=20)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_a_point_and_run_again_the_result_is_the_same(kind, undisturbed, nursery, bucket):
    whole, expected, _ = undisturbed
    reached = sum(point.split()[0] == kind for point in whole.points)
    assert reached
    for number in sorted({1, math.ceil(reached / 2), reached}):
        uri = bucket.uri(f"killed-{kind}-{number}")
        killed = nursery.run(uri, fault=f"{kind}:{number}")
        assert killed.killed, killed.output
        again = nursery.run(uri)
        assert again.code == 0, again.output
        assert meaning(Storage(uri)) == expected
        assert killed.units + again.units <= whole.units + REDONE


@pytest.mark.chaos  # it asks about a run that the kills need too
def test_kinds_of_points_are_those_of_the_run(undisturbed):
    assert undisturbed[0].kinds == set(KINDS)


@pytest.fixture
def toys():
    with toy_stages():
        yield


@pytest.mark.chaos
def test_changed_objects_are_found_and_made_again(toys, undisturbed, nursery, bucket, clipmill):
    uri = bucket.uri("changed")
    assert nursery.run(uri).code == 0
    folder = Storage(uri)
    changed = [name for name in undisturbed[1] if re.search(r"/000000-.*parquet|npy$", name)]
    for name in changed:
        data = bytearray(folder.read(name))
        data[len(data) // 2] ^= 1
        folder.put(name, bytes(data), point="rename")
    said = clipmill("verify", "--run", uri, "--json")
    assert said.code == 1
    assert sum(len(stage["damaged"]) for stage in said.json) == len(changed)
    assert clipmill("verify", "--run", uri, "--repair", "--workers", 0).code == 0
    assert meaning(folder) == undisturbed[1]


# A store that fails


@pytest.fixture
def run_flaky(proxy, bucket, recipe, pool, monkeypatch):
    """Runs the recipe in this process through the proxy, under troubles."""
    monkeypatch.setattr(storage, "RETRY_S", (0.0, 0.0))

    def run(name: str, *troubles: Trouble) -> tuple[Outcome, str]:
        proxy.troubles[:] = troubles
        uri = bucket.uri(name).replace(f":{bucket.port}", f":{proxy.port}")
        plan = make_plan(load_recipe(str(recipe), [f"numbers.path={pool}"]))
        try:
            return run_plan(plan, Storage(uri), LocalExecutor(0), Lines()), uri
        finally:
            proxy.troubles.clear()

    with toy_stages():
        yield run


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["503", "cut"])
def test_a_store_that_fails_for_a_moment_is_asked_again(kind, run_flaky, undisturbed):
    troubles = [
        Trouble("PUT .*/square.*parquet", kind, 3),
        Trouble("PUT .*json", kind, 4),
        Trouble("GET .*parquet", kind, 2),
        Trouble("HEAD ", kind, 2),
        Trouble("DELETE |POST ", kind, 2),
    ]
    outcome, uri = run_flaky(f"moment-{kind}", *troubles)
    assert outcome.complete
    assert all(trouble.met for trouble in troubles[:4])
    assert meaning(Storage(uri)) == undisturbed[1]


@pytest.mark.chaos  # pyarrow itself asks for six seconds before it gives up
@pytest.mark.parametrize(
    ("match", "kind"),
    [
        ("PUT .*/square.*/000000-.*parquet", "cut"),
        ("PUT .*/square.*/000000.json", "503"),
        ("PUT .*/fourth.*/000000-.*parquet", "503"),
        ("PUT .*/fourth.*/000000.json", "cut"),
    ],
    ids=["data", "record", "second data", "second record"],
)
def test_a_shard_that_cannot_be_stored_fails_by_name_and_nothing_half_is_there(
    match, kind, run_flaky, undisturbed, monkeypatch
):
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(storage, "RETRY_S", ())
    name = "fails-" + "".join(filter(str.isalnum, match))
    outcome, uri = run_flaky(name, Trouble(match, kind))
    failed = "square" if "square" in match else "fourth"
    stages = outcome.state.stages
    assert not outcome.complete
    [failure] = [failure for failure in stages[failed].failures.values() if failure]
    assert f"stage '{failed}', shard 0" in failure.where
    assert list(stages[failed].shards) == [1]
    assert stages["shared"].complete
    found = meaning(Storage(uri))
    data = {name: digest for name, digest in found.items() if name.endswith("0.parquet")}
    assert data.items() <= undisturbed[1].items()
    again, _ = run_flaky(name)
    assert again.complete
    assert meaning(Storage(uri)) == undisturbed[1]


@pytest.mark.drawn(one_in=3, cpu_s=10)
def test_a_store_that_fails_and_hangs_at_random_changes_nothing(
    run_flaky, undisturbed, seed, record_property
):
    failing = Trouble("", "500 InternalError", share=0.05, seed=seed)
    hanging = Trouble("", "hang", share=0.01, seed=seed)
    outcome, uri = run_flaky("at-random", failing, hanging)
    assert outcome.complete
    assert failing.met > 3
    assert hanging.seen > 100
    record_property("tries", failing.met + hanging.met)
    print(f"{hanging.seen} requests: {failing.met} failed, {hanging.met} hung")
    assert meaning(Storage(uri)) == undisturbed[1]


@pytest.mark.chaos
@pytest.mark.parametrize("answer", ["507 XMinioStorageFull", "403 QuotaExceeded"])
def test_a_store_that_is_full_stops_the_stage_and_with_room_the_run_goes_on(
    answer, run_flaky, undisturbed
):
    name = answer.partition(" ")[2]
    full = Trouble("PUT .*/square.*parquet", answer)
    outcome, uri = run_flaky(name, full)
    found, _, do = outcome.stopped["square"].args
    assert found.startswith("the store is full: ")
    assert do == "free space there, then run again: what is stored stays"
    assert full.met <= 3 * 5, "nor does it try for long"
    outcome, _ = run_flaky(name)
    assert outcome.complete
    assert meaning(Storage(uri)) == undisturbed[1]


def test_a_store_that_is_not_there_is_said_without_keys(
    toys, clipmill, bucket, recipe, monkeypatch
):
    monkeypatch.setattr(storage, "RETRY_S", ())
    nowhere = bucket.uri("run").replace(f":{bucket.port}", ":9")
    said = clipmill("run", recipe, "--out", nowhere, "--workers", 0)
    assert said.code == 1
    assert "key 'run/run.json' in bucket 'bucket': AWS Error NETWORK_CONNECTION" in said.err
    assert "check that it is there" in said.err
    assert "SECRET" not in said.out + said.err


@pytest.mark.chaos  # it asks about a run that the kills need too
def test_keys_are_in_no_output_and_no_object(undisturbed, bucket):
    assert "bucket/undisturbed" in undisturbed[0].output
    assert redacted(bucket.uri("undisturbed")) == "s3://bucket/undisturbed"
    folder = Storage(bucket.uri("undisturbed"))
    names = [name for name in undisturbed[1] if name.endswith("json")]
    texts = [folder.read(name).decode() for name in names] + undisturbed[1]["recipes"]
    for text in (undisturbed[0].output, *texts):
        assert "SECRET" not in text
        assert "KEY" not in text


# How it goes


def test_status_is_seen_from_elsewhere_and_says_when_nobody_works_any_more(
    nursery, bucket, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(STAGES / "stages"))
    uri = bucket.uri("watched")
    killed = nursery.run(uri, fault="manifest:2")
    assert killed.killed
    found = status(uri)
    assert (found.phase, found.stages["numbers"].status) == ("gone", "done")
    assert {stage.status for stage in found.stages.values()} >= {"done", "waiting"}
    run = Storage(uri)
    lease = json.loads(run.read("lock.json"))

    def lives_elsewhere(for_s: float) -> None:
        now = {**lease, "host": "elsewhere", "expires": time.time() + for_s}
        run.put("lock.json", json.dumps(now).encode(), point="lock")

    lives_elsewhere(30)
    assert status(uri).phase == "running", "for all that can be seen from here"
    assert "SECRET" not in run.read("live.json").decode()
    lives_elsewhere(-1)
    assert status(uri).phase == "gone"
    nursery.run(uri)
    assert status(uri).phase == "complete"
