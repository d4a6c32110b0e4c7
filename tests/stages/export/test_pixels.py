"""export.pixels: what it stores of which rows, and that a training on it is one on its export."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.places import places_name
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.export.pixels import Pixels
from clipmill.stages.towers.nano import ARCHITECTURES
from clipmill.stages.train.clip import ClipTraining
from tests.stages.clip.exported import COLOURS, TINY, row, write_export

SMALL = {"batch_size": 8, "samples_seen": 24, "warmup_steps": 1}
BAD = {3: {"image": None}, 5: {"image": b"<html>"}, 9: {"texts": []}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    rows = [row(i, **BAD.get(i, {})) for i in range(12)]
    folder = tmp_path_factory.mktemp("export") / "e"
    data = write_export(folder, rows[:7], rows[7:7], rows[7:])
    for file, count in (("00000", 7), ("00001", 0), ("00002", 5)):
        places_N2 = np.stack([np.arange(count), np.arange(count)], 1)
        np.save(folder / "out" / f"{file}.places.npy", places_N2.astype(np.int32))
    return data


@pytest.fixture
def pixels(memory_context, data):
    ctx = memory_context()
    Pixels(image_size=TINY.image_size).run(Inputs(rows=[], data=data), ctx)
    return Path(ctx.folder)


def test_every_row_with_a_picture_stays_in_its_file_and_order_with_all_columns_but_it(pixels):
    table = pq.read_table(pixels / "out" / "00000.parquet")
    assert table.column_names == ["uid", "texts", "repeats", "loss_weight"]
    assert table["uid"].to_pylist() == [row(i)["uid"] for i in (0, 1, 2, 4, 6)]
    image_NSS3 = np.load(pixels / "out" / "00000.pixels.npy", mmap_mode="r")
    for stored, i in zip(image_NSS3, (0, 1, 2, 4, 6), strict=False):
        bgr = list(COLOURS.values())[i % len(COLOURS)]
        assert stored[8, 8].tolist() == list(bgr[::-1])
    places = np.load(pixels / "out" / places_name("00000.parquet"))
    assert places[:, 1].tolist() == [0, 1, 2, 4, 6]


def test_rows_without_a_picture_are_counted_and_those_without_a_text_stay(pixels):
    told = json.loads((pixels / "out" / "dataset.json").read_text())
    assert told["counts"] == {"rows": 12, "exported": 10, "no_image": 1, "undecodable": 1}
    assert [file["rows"] for file in told["files"]] == [5, 0, 5]
    assert (told["format"], told["image_size"]) == ("pixels", TINY.image_size)


@pytest.fixture
def trained(memory_context, monkeypatch):
    """The weights of a training, and its card."""
    monkeypatch.setitem(ARCHITECTURES, "nano", TINY)

    def train(data, **settings):
        ctx = memory_context()
        ClipTraining(**SMALL, **settings).run(Inputs(rows=[], data=str(data)), ctx)
        out = Path(ctx.folder) / "out"
        return (out / "model.safetensors").read_bytes(), json.loads(
            (out / "model.json").read_text()
        )

    return train


def test_any_number_of_trainings_read_it_and_none_decodes_a_picture(
    pixels, data, trained, tmp_path, monkeypatch
):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(row(i)["uid"].hex() for i in range(1, 11)))
    arms = ({}, {"subset": str(listed), "batch_size": 4})
    settings = [{**SMALL, **arm} for arm in arms]
    monkeypatch.setattr("tests.stages.export.test_pixels.SMALL", {})
    wanted = [trained(data, **its)[0] for its in settings]
    monkeypatch.setattr("clipmill.stages.ops.images.squares.decode", None)
    found = [trained(pixels, **its) for its in settings]
    assert [weights for weights, _ in found] == wanted
    assert [card["left_out"]["no_text"] for _, card in found] == [1, 1]
    assert found[1][1]["not_there"] == 2, "whose pictures did not decode"


def test_pictures_of_another_size_than_the_scale_takes_are_refused(memory_context, data, trained):
    ctx = memory_context()
    Pixels(image_size=TINY.image_size + 8).run(Inputs(rows=[], data=data), ctx)
    with pytest.raises(StageError, match=r"pictures of 24 pixels, and 'nano' takes 16"):
        trained(ctx.folder)


def test_it_is_seen_in_epochs(pixels, trained):
    with pytest.raises(StageError, match="are seen in epochs, and `sampling` says shards"):
        trained(pixels, sampling="shards")


def test_an_export_of_it_is_refused(pixels, memory_context):
    with pytest.raises(StageError, match="a pixels export"):
        Pixels().run(Inputs(rows=[], data=str(pixels)), memory_context())
