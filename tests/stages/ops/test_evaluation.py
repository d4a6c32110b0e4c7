"""Evaluation sets as folders or Parquet: what is read of each, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.tasks.evaluation import (
    Request,
    listing_digest,
    put_samples,
    read,
    samples_in,
    tasks_at,
)
from tests.stages.task_folders import picture, write_tar

HASHES = pa.field("phash", pa.uint64())
CAPTIONS = Request(column=pa.field("text", pa.string()), measure=None)
VECTORS = Request(column=pa.field("isc", pa.list_(pa.float32())), measure=None)


def red(pictures) -> np.ndarray:
    """The red of the middle of each picture: as good a hash as any."""
    return np.array([int(rgb[5, 5, 0]) for rgb in pictures], np.uint64)


BY_RED = Request(column=HASHES, measure=red)


def everything(uri, name: str, wanted: Request) -> list[tuple]:
    tables = list(read(str(uri), name, wanted, "it"))
    assert all(table.schema.types == [pa.string(), wanted.column.type] for table in tables)
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()

    def write(name: str, **columns):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return folder

    return write


def test_pictures_of_a_folder_are_measured(tasks):
    found = everything(tasks, "colours", BY_RED)
    assert [key for key, _ in found] == [f"{number:02d}" for number in range(20)]
    assert [value for _, value in found[:4]] == [255, 0, 0, 99]


def test_every_caption_of_a_picture_is_read_and_class_names_are_none(tasks):
    assert everything(tasks, "words", CAPTIONS)[:3] == [
        ("00", "red 00"),
        ("00", "thing 00"),
        ("01", "green 01"),
    ]
    assert everything(tasks, "colours", CAPTIONS) == []


def test_a_folder_that_is_not_right_is_refused(tasks):
    write_tar(tasks / "colours" / "test" / "0.tar", {"a.png": picture(0)[:60], "a.cls": b"0"})
    with pytest.raises(StageError, match="truncated") as error:
        everything(tasks, "colours", BY_RED)
    assert error.value.args[1] == f"stage 'it', key `tasks`: {tasks}/colours/test/0.tar, key a"
    assert f"`clipmill doctor tasks {tasks}`" in error.value.args[2]


def test_values_of_a_file_are_read_with_their_keys_or_their_numbers(parquet):
    folder = parquet("a", key=["x", "y"], phash=pa.array([1, 2**63], pa.uint64()), image=[b"", b""])
    parquet("b", text=["one", "two"])
    assert everything(folder, "a", BY_RED) == [("x", 1), ("y", 2**63)]
    assert everything(folder, "b", CAPTIONS) == [("0", "one"), ("1", "two")]


def test_pictures_of_a_file_are_measured_in_batches(parquet):
    folder = parquet("a", image=[picture(number) for number in range(150)])
    found = everything(folder, "a", BY_RED)
    assert [key for key, _ in found] == [str(number) for number in range(150)]
    want = [red([decode(picture(number))])[0] for number in range(150)]
    assert [value for _, value in found] == want


def test_vectors_are_read_whatever_the_type_of_their_list(parquet):
    folder = parquet("a", isc=pa.array([[1, 2]], pa.list_(pa.float32(), 2)))
    parquet("b", isc=pa.array([[0.5, 1]], pa.list_(pa.float64())))
    assert everything(folder, "a", VECTORS) == [("0", [1, 2])]
    assert everything(folder, "b", VECTORS) == [("0", [0.5, 1])]


def test_a_hash_stored_as_a_signed_number_is_taken_by_its_bits(parquet):
    folder = parquet("a", phash=pa.array([-1, 5, -(2**63)], pa.int64()))
    assert everything(folder, "a", BY_RED) == [("0", 2**64 - 1), ("1", 5), ("2", 2**63)]


@pytest.mark.parametrize("dtype", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_captions_are_read_from_any_column_of_strings(dtype, parquet):
    folder = parquet("a", text=pa.array(["one", "two"]).cast(dtype))
    assert everything(folder, "a", CAPTIONS) == [("0", "one"), ("1", "two")]


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "wanted", "found", "place"),
    [
        ({"key": ["a"]}, BY_RED, "no column 'phash'", ""),
        ({"image": [b"<html>"]}, BY_RED, "not_an_image", ", row 0"),
        ({"image": [b"<html>"], "key": ["x"]}, BY_RED, "not_an_image", ", key x"),
        ({"image": ["a.png"]}, BY_RED, "a column 'image' of string", ""),
        ({"image": [b"<html>"]}, CAPTIONS, "no column 'text'", ""),
        ({"phash": pa.array([1, None], pa.uint64())}, BY_RED, "a null in 'phash'", ", row 1"),
        ({"phash": ["c3d0"]}, BY_RED, "a column 'phash' of string", ""),
        ({"image": pa.array([None], pa.binary())}, BY_RED, "not_an_image", ", row 0"),
        ({"text": [7]}, CAPTIONS, "a column 'text' of int64", ""),
        ({"isc": ["0.1 0.2"]}, VECTORS, "a column 'isc' of string", ""),
        ({"isc": [[1.0, 2.0]] * 70 + [[1.0]]}, VECTORS, "1 wide, after others 2 wide", ", row 70"),
        ({"isc": [[1.0], [0.0]]}, VECTORS, "zero or not finite", ", row 1"),
        ({"isc": [[1.0], [NAN]], "key": ["x", "y"]}, VECTORS, "zero or not finite", ", key y"),
        ({"isc": [[1.0, None]]}, VECTORS, "zero or not finite", ", row 0"),
    ],
    ids=lambda case: case if isinstance(case, str) else None,
)
def test_a_file_that_is_not_right_is_refused(columns, wanted, found, place, parquet):
    folder = parquet("a", **columns)
    with pytest.raises(StageError, match=found) as error:
        everything(folder, "a", wanted)
    assert error.value.args[1] == f"stage 'it', key `tasks`: {folder}/a.parquet{place}"


def test_pictures_are_proposed_only_where_they_can_be_measured(parquet):
    folder = parquet("a", key=["x"])
    for wanted, proposed in ((BY_RED, True), (CAPTIONS, False)):
        with pytest.raises(StageError, match="no column") as error:
            everything(folder, "a", wanted)
        assert ("`image`" in error.value.args[2]) is proposed


@pytest.mark.parametrize("kept", [b"", b"hello", None], ids=["empty", "a text", "half"])
def test_a_file_that_is_no_parquet_is_refused(kept, parquet):
    path = parquet("a", text=[str(number) for number in range(1000)]) / "a.parquet"
    path.write_bytes(path.read_bytes()[:500] if kept is None else kept)
    with pytest.raises(StageError, match="no Parquet that can be read") as error:
        everything(path.parent, "a", CAPTIONS)
    assert str(path) in error.value.args[1]


def test_tasks_are_listed_with_a_digest_of_their_bytes(tasks, parquet):
    assert [item["task"] for item in tasks_at(str(tasks), "it")] == ["colours", "words"]
    (one,) = tasks_at(str(parquet("a", text=["one"])), "it")
    (two,) = tasks_at(str(parquet("a", text=["two"])), "it")
    assert (one["task"], two["task"]) == ("a", "a")
    assert one["sha256"] != two["sha256"]


def test_folders_and_files_in_one_place_are_all_tasks_and_hidden_ones_none(tasks):
    pq.write_table(pa.table({"phash": pa.array([7], pa.uint64())}), tasks / "more.parquet")
    (tasks / "._more.parquet").write_bytes(b"of a file system")
    assert [item["task"] for item in tasks_at(str(tasks), "it")] == ["colours", "more", "words"]
    assert everything(tasks, "more", BY_RED) == [("0", 7)]
    assert len(everything(tasks, "words", BY_RED)) == 7
    (tasks / "more.parquet").rename(tasks / "words.parquet")
    with pytest.raises(StageError, match=r"'words' and 'words.parquet'"):
        tasks_at(str(tasks), "it")


def test_no_task_is_refused(tmp_path):
    with pytest.raises(StageError, match="no task"):
        tasks_at(str(tmp_path), "it")
    with pytest.raises(StageError, match="no such folder"):
        tasks_at(str(tmp_path / "mistyped"), "it")


def test_a_glance_sees_that_a_file_of_either_kind_changed(tasks):
    seen = {listing_digest(str(tasks))}
    for number, path in enumerate([tasks / "a.parquet", tasks / "colours" / "classnames.txt"], 1):
        path.write_bytes(b"red")
        seen.add(listing_digest(str(tasks)))
        assert len(seen) == 1 + number


def test_samples_that_fit_are_stored_by_task_and_read_again(parquet, memory_context):
    folder = str(parquet("a", key=["one", "two"], text=["a cat", "cat"]))
    ctx = memory_context()
    task = SimpleNamespace(worker=ctx.worker, put_file=ctx.put_file)
    wanted = Request(
        column=pa.field("text", pa.string()),
        measure=None,
        fits=lambda captions: pc.match_substring(captions, " "),
    )
    assert put_samples(folder, "a", wanted, task) == {"read": 2, "stored": 1}
    assert samples_in(ctx.folder, "a").to_pydict() == {"key": ["one"], "value": ["a cat"]}
