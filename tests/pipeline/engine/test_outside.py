"""What comes from outside a run: weights held to their first digest, inputs that may change."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.run_folder import pins
from tests.engine_stages.harness import clipmill_run, meaning

WEIGHED = "  weighed: {{uses: toy.weighed, from: numbers, weights: {}}}\n"
OUTSIDER = "  copy: {{uses: toy.outsider, from: numbers, path: {}}}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "outside.txt"
    path.write_text("3")
    return path


def forget(ran, stage: str, shard: int) -> None:
    """Takes a record away, so that the shard is made again."""
    [record] = (ran.folder / "stages").glob(f"{stage}-*/{shard:06d}.json")
    record.unlink()


@pytest.fixture(scope="module", params=[0, 2])
def executor(request):
    with closing(LocalExecutor(request.param, with_main=False)) as executor:
        yield executor


@pytest.mark.slow("two workers begin")
def test_weights_that_changed_since_the_first_shard_are_refused(engine, file, executor):
    stages = WEIGHED.format(file)
    first = engine.run(stages, executor=executor)
    assert first.complete
    forget(first, "weighed", 1)
    file.write_text("4")
    second = engine.run(stages, executor=executor)
    said = second.error("weighed")
    assert "the weights has digest 4b227777d4dd, and had 4e07408562be at first use" in said
    assert "stage 'weighed'" in said
    assert "use another --out" in said
    file.write_text("3")
    third = engine.run(stages, executor=executor)
    assert third.complete
    assert third.column("weighed", "product") == first.column("weighed", "product")


@pytest.mark.parametrize("held", [b"", b"[1]", b'{"what": 1, "sha256": null}', None])
def test_a_digest_that_cannot_be_read_any_more_is_named_not_taken_anew(engine, file, held):
    stages = WEIGHED.format(file)
    first = engine.run(stages)
    forget(first, "weighed", 1)
    [pin] = first.folder.glob("stages/weighed-*/pins/*.json")
    for place in (pin, Path(str(pin).replace("/pins/", "/pins-copy/"))):
        place.unlink()
        if held is None:
            place.mkdir()
        else:
            place.write_bytes(held)
    said = engine.run(stages).error("weighed")
    assert "the digest that the weights had at first use cannot be read" in said
    assert f"{pin}\n" in said
    assert "delete that file and its copy in pins-copy if the bytes are still the same" in said


@pytest.mark.parametrize("lost", ["pins", "pins-copy"])
def test_digests_that_were_deleted_are_known_by_their_copies(engine, file, lost):
    stages = WEIGHED.format(file)
    first = engine.run(stages)
    [folder] = first.folder.glob("stages/weighed-*")
    forget(first, "weighed", 1)
    shutil.rmtree(folder / lost)
    file.write_text("4")
    assert "had 4e07408562be at first use" in engine.run(stages).error("weighed")
    [one], [other] = ((folder / place).iterdir() for place in ("pins", "pins-copy"))
    assert one.read_bytes() == other.read_bytes()
    file.write_text("3")
    assert engine.run(stages).complete


def test_a_digest_of_an_older_run_is_held_to(engine, file):
    stages = WEIGHED.format(file)
    first = engine.run(stages)
    [pin] = first.folder.glob("stages/weighed-*/pins/*.json")
    forget(first, "weighed", 1)
    pin.write_text(json.dumps({"what": "the weights", "sha256": "4e07408562be" + "0" * 52}))
    shutil.rmtree(pin.parents[1] / "pins-copy")
    assert "had 4e07408562be at first use" in engine.run(stages).error("weighed")


def test_what_a_file_manager_leaves_among_the_digests_is_no_damage(tmp_path):
    folder = Storage(str(tmp_path))
    pins.pin(folder, "weighed", "the weights", "4e07408562be" + "0" * 52)
    for place in (pins.PINS, pins.COPIES):
        folder.put(f"{place}/.DS_Store", b"Bud1", "pin")
    assert not list(pins.wrong_pins(folder))


@pytest.mark.parametrize("way", ["gone", "torn", "flipped", "copy flipped", "both torn"])
def test_a_digest_that_is_damaged_is_found_and_mended(engine, file, way, clipmill):
    stages = WEIGHED.format(file)
    first = engine.run(stages)
    [pin] = first.folder.glob("stages/weighed-*/pins/*.json")
    [copy] = first.folder.glob("stages/weighed-*/pins-copy/*.json")
    stored = pin.read_bytes()
    damaged = {"copy flipped": [copy], "both torn": [pin, copy]}.get(way, [pin])
    for one in damaged:
        if way == "gone":
            shutil.rmtree(one.parent)
        else:
            one.write_bytes(stored[:9] if "torn" in way else stored.replace(b"4e07", b"4e06"))
    said = clipmill("verify", "--run", first.folder, "--json")
    assert said.code == 1
    named = [bad["file"] for stage in said.json for bad in stage["damaged"]]
    assert sorted(named) == sorted(f"{one.parent.name}/{one.name}" for one in damaged)
    assert clipmill("verify", "--run", first.folder, "--repair", "--workers", 0).code == 0
    if way == "both torn":
        assert not pin.exists()  # as at first use
    else:
        assert pin.read_bytes() == copy.read_bytes() == stored


def test_weights_that_changed_after_all_is_done_are_no_failure(engine, file):
    assert engine.run(WEIGHED.format(file)).complete
    file.write_text("4")
    assert engine.run(WEIGHED.format(file)).complete


@pytest.mark.chaos
def test_killed_right_after_the_digest_is_kept_and_run_again_the_result_is_the_same(
    engine, file, tmp_path
):
    engine.plan(WEIGHED.format(file))
    recipe = tmp_path / "recipe.yaml"
    whole = clipmill_run(recipe, tmp_path / "whole", tmp_path / "faults-whole")
    assert whole.code == 0, whole.output
    assert sum(point.startswith("pin ") for point in whole.points) == 1
    killed = clipmill_run(recipe, tmp_path / "run", tmp_path / "faults-killed", fault="pin:1")
    assert killed.killed, killed.output
    again = clipmill_run(recipe, tmp_path / "run", tmp_path / "faults-again")
    assert again.code == 0, again.output
    assert meaning(Storage(str(tmp_path / "run"))) == meaning(Storage(str(tmp_path / "whole")))


def test_another_stage_may_begin_with_other_weights(engine, file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("4")
    stages = WEIGHED.format(file) + WEIGHED.format(other).replace("weighed:", "again:")
    assert engine.run(stages).complete


def test_a_stage_whose_source_changed_runs_again_and_another_does_not(engine, file, tmp_path):
    same = tmp_path / "same.txt"
    same.write_text("same")
    stages = OUTSIDER.format(file) + OUTSIDER.format(same).replace("copy:", "other:")
    first = engine.run(stages)
    again = engine.run(stages)
    assert again.written("copy") == first.written("copy")
    file.write_text("5")
    changed = engine.run(stages)
    assert changed.complete
    [held] = (changed.folder / "stages").glob("copy-*/out/copy.txt")
    assert held.read_text() == "5"
    assert changed.written("copy") != first.written("copy")
    assert changed.written("other") == first.written("other")
    assert engine.run(stages).written("copy") == changed.written("copy")


def test_rows_whose_source_changed_are_made_again_and_what_reads_them_too(engine, file):
    stages = f"  shifted: {{uses: toy.shifted, from: numbers, path: {file}}}\n"
    stages += "  square: {uses: toy.power, from: shifted, read: {number: shifted.shifted}}\n"
    first = engine.run(stages)
    assert engine.run(stages).written("shifted") == first.written("shifted")
    file.write_text("5")
    changed = engine.run(stages)
    assert changed.complete
    now = changed.column("shifted", "shifted")
    assert now == [n + 2 for n in first.column("shifted", "shifted")]
    assert changed.column("square", "power") == [n**2 if n % 7 else None for n in now]
    assert engine.run(stages).written("shifted") == changed.written("shifted")


def test_a_source_that_cannot_be_listed_stops_its_stage_alone(engine, file):
    stages = OUTSIDER.format(file) + "  square: {uses: toy.power, from: numbers}\n"
    file.unlink()
    ran = engine.run(stages)
    assert "No such file" in ran.error("copy")
    assert len(ran.column("square", "power")) == 31
