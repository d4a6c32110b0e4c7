"""Which rows of an export a list or a subset file names: joins, multisets, weights and texts."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXT_LIST
from clipmill.metadata.subset_file import write_subset
from clipmill.metadata.uid import halves
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.subset import Chosen, chooser_of, counted, look_at, subset_digest
from tests.stages.clip.exported import caption, row, write_export

FILES = ["00000.parquet", "00001.parquet"]


@pytest.fixture
def data(tmp_path):
    """Six rows in two files, of which the last has the first one's uid."""
    data = write_export(tmp_path / "e", [row(i) for i in range(4)], [row(4), row(0)])
    for file, places in (("00000", [[7, 0], [7, 1], [7, 2], [9, 0]]), ("00001", [[9, 1], [9, 2]])):
        np.save(tmp_path / "e" / "out" / f"{file}.places.npy", np.array(places, np.int32))
    return data


def uids(*numbers) -> pa.Array:
    return pa.array([row(i)["uid"] for i in numbers], pa.binary(16))


def npy(path, *numbers):
    pairs = [tuple(pair) for pair in halves(uids(*numbers)).tolist()]
    np.save(path, np.array(pairs, "u8,u8"))
    return str(path)


def lines(path, *numbers):
    path.write_text("\n".join(uid.as_py().hex() for uid in uids(*numbers)))
    return str(path)


def parquet(path, **columns):
    types = {"shard": pa.int32(), "position": pa.int32(), "repeats": pa.int32()}
    types |= {"loss_weight": pa.float32(), "texts": TEXT_LIST}
    table = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    write_subset(path, [pa.table(table)])
    return str(path)


def times(data, path) -> list[list[int]]:
    choose = chooser_of(data, None, path)
    return [choose(file).times.tolist() for file in FILES]


@pytest.mark.parametrize("written", [npy, lines])
def test_a_uid_counts_as_often_as_it_is_listed_in_every_row_that_has_it(written, data, tmp_path):
    path = written(tmp_path / "list", 3, 0, 3, 99) if written is lines else None
    path = path or npy(tmp_path / "list.npy", 3, 0, 3, 99)
    assert times(data, path) == [[1, 0, 0, 2], [0, 1]]
    found = counted(path, subset_digest(path), data, FILES, 0, None)
    assert found == {"listed": 3, "not_there": 1, "rows": 3}


def test_a_subset_file_without_places_is_joined_by_uid(data, tmp_path):
    path = parquet(tmp_path / "s.parquet", uid=uids(1, 0, 2), repeats=[3, 1, 0])
    assert times(data, path) == [[1, 3, 0, 0], [0, 1]]


def test_one_with_places_is_joined_by_these_as_uids_repeat(data, tmp_path):
    path = parquet(tmp_path / "s.parquet", uid=uids(0, 1), shard=[9, 7], position=[2, 1])
    assert times(data, path) == [[0, 1, 0, 0], [0, 1]]


def test_one_of_another_pool_is_refused_where_places_hold_other_uids(data, tmp_path):
    path = parquet(tmp_path / "s.parquet", uid=uids(5), shard=[7], position=[1])
    with pytest.raises(StageError, match=r"stands another uid(.|\n)*row 1 of 00000"):
        times(data, path)


def test_an_export_without_places_is_not_joined_by_them(data, tmp_path):
    (tmp_path / "e" / "out" / "00001.places.npy").unlink()
    path = parquet(tmp_path / "s.parquet", uid=uids(0), shard=[9], position=[2])
    with pytest.raises(StageError, match=r"no 00001\.places\.npy"):
        times(data, path)


def test_weights_and_texts_stand_in_the_place_of_the_exports_but_where_they_are_null(
    data, tmp_path
):
    path = parquet(
        tmp_path / "s.parquet",
        uid=uids(2, 1),
        loss_weight=[0.25, None],
        texts=[None, [caption("one"), caption("two")]],
    )
    chosen = chooser_of(data, None, path)(FILES[0])
    held = pa.table(
        {
            "uid": uids(0, 1, 2, 3),
            "repeats": pa.array([9] * 4, pa.int32()),
            "loss_weight": pa.array([0.5] * 4, pa.float32()),
            "texts": pa.chunked_array([[[f"own {i}"] for i in range(4)]]),
        }
    )
    parts = [chosen.of(held.slice(start, 2), start) for start in (0, 2)]
    rows = pa.concat_tables(parts).drop_columns(["uid"]).to_pylist()
    assert rows == [
        {"repeats": 1, "loss_weight": 0.5, "texts": ["one", "two"]},
        {"repeats": 1, "loss_weight": 0.25, "texts": ["own 2"]},
    ]


def test_another_weight_or_text_is_another_choice():
    times_N = np.ones(1, np.int32)
    choices = [
        Chosen(times=times_N),
        Chosen(times=times_N, weights=np.ones(1, np.float32)),
        Chosen(times=times_N, texts=pa.array([["a"]])),
        Chosen(times=times_N, texts=pa.array([["b"]])),
    ]
    assert len({chosen.digest for chosen in choices}) == 4


def test_an_empty_list_names_no_row(data, tmp_path):
    path = lines(tmp_path / "list.txt")
    assert times(data, path) == [[0] * 4, [0] * 2]


def test_uids_that_end_in_zeros_are_told_apart(tmp_path):
    """A uid is sixteen bytes: none is a shorter text."""
    ends = [b"a" * 15 + b"\0", b"a" * 16, b"a" * 14 + b"\0\0"]
    data = write_export(tmp_path / "e", [row(i, uid=uid) for i, uid in enumerate(ends)])
    (tmp_path / "list.txt").write_text(ends[0].hex())
    choose = chooser_of(data, None, str(tmp_path / "list.txt"))
    assert choose(FILES[0]).times.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: path.write_text("no uid\n"), "'no uid' is no uid"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "an array of float64"),
        (lambda path: path.write_bytes(b"PAR1 cut short"), "no subset: "),
        (lambda path: parquet(path, uid=uids(1, 1)), "1 rows named twice"),
    ],
    ids=["text", "npy", "torn", "twice"],
)
def test_what_is_no_subset_is_refused_by_name(make, found, data, tmp_path):
    make(tmp_path / "bad")
    with pytest.raises(StageError, match=found) as refused:
        times(data, str(tmp_path / "bad"))
    assert str(tmp_path / "bad") in str(refused.value)


def test_a_torn_file_is_seen_before_anything_runs(tmp_path):
    (tmp_path / "torn").write_bytes(b"PAR1 cut short")
    with pytest.raises(StageError, match="no subset"):
        look_at(str(tmp_path / "torn"))
