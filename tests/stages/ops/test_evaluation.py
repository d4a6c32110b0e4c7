"""Evaluation sets as folders or Parquet: what is read of each, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metadata.storage import Storage
from pipeline.errors import StageError
from stages.ops import tasks as folders
from stages.ops.evaluation import Wanted, glanced, listed, read
from stages.ops.images import decode
from tests.stages.task_folders import picture, write_tar

HASHES = pa.field("phash", pa.uint64())
CAPTIONS = Wanted(column=pa.field("text", pa.string()), measure=None)


def red(pictures) -> np.ndarray:
    """The red of the middle of each picture: as good a hash as any."""
    return np.array([int(rgb[5, 5, 0]) for rgb in pictures], np.uint64)


BY_RED = Wanted(column=HASHES, measure=red)


def everything(uri, name: str, wanted: Wanted) -> list[tuple]:
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
    assert "clipmill doctor tasks" in error.value.args[2]


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
    wanted = Wanted(column=pa.field("isc", pa.list_(pa.float32())), measure=None)
    folder = parquet("a", isc=pa.array([[1, 2]], pa.list_(pa.float32(), 2)))
    parquet("b", isc=pa.array([[0.5, 1]], pa.list_(pa.float64())))
    assert everything(folder, "a", wanted) == [("0", [1, 2])]
    assert everything(folder, "b", wanted) == [("0", [0.5, 1])]


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        ({"key": ["a"]}, BY_RED, "no column 'phash'"),
        ({"image": [b"<html>"]}, BY_RED, "not_an_image"),
        ({"image": [b"<html>"]}, CAPTIONS, "no column 'text'"),
        ({"phash": pa.array([None], pa.uint64())}, BY_RED, "a null in 'phash'"),
        ({"image": pa.array([None], pa.binary())}, BY_RED, "not_an_image"),
    ],
    ids=["no column", "a page", "pictures for captions", "a null", "a null picture"],
)
def test_a_file_that_is_not_right_is_refused(columns, wanted, found, parquet):
    with pytest.raises(StageError, match=found) as error:
        everything(parquet("a", **columns), "a", wanted)
    assert "a.parquet" in error.value.args[1]


def test_tasks_are_listed_with_a_digest_of_their_bytes(tasks, parquet):
    assert [item["task"] for item in listed(str(tasks), "it")] == ["colours", "words"]
    (one,) = listed(str(parquet("a", text=["one"])), "it")
    (two,) = listed(str(parquet("a", text=["two"])), "it")
    assert (one["task"], two["task"]) == ("a", "a")
    assert one["sha256"] != two["sha256"]


def test_no_task_is_refused(tmp_path):
    with pytest.raises(StageError, match="no task"):
        listed(str(tmp_path), "it")


def test_a_glance_sees_that_a_file_changed(tasks, parquet):
    assert glanced(str(tasks)) == folders.listing_digest(Storage(str(tasks)))
    before = glanced(str(parquet("a", text=["one"])))
    assert glanced(str(parquet("b", text=["one"]))) != before
