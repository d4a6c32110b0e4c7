"""The cache: what a row becomes, which rows are left out, other disks."""

import cv2
import numpy as np
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.cache import read_cached
from clipmill.stages.ops.images.squares import square
from clipmill.stages.towers.nano import token_bags
from tests.hostile_pictures import scanned
from tests.stages.clip.exported import TINY, caption, row


def test_pictures_stand_whole_and_centred_on_white():
    out = square(np.zeros((4, 8, 3), np.uint8), 16)
    assert out.shape == (16, 16, 3)
    assert (out[4:12] == 0).all()
    assert (out[:4] == 255).all()
    assert (out[12:] == 255).all()


def test_a_row_is_its_picture_captions_repeats_and_weight(cached):
    texts = [caption("red thing"), caption(None), caption("a")]
    [part], [said] = cached([row(0, texts=texts, repeats=3, loss_weight=0.5), row(1)])
    assert (part.file, said["rows"]) == ("00000.parquet", 2)
    assert part.images[0, 8, 8].tolist() == [255, 0, 0]
    assert part.uids[0].tobytes() == row(0)["uid"]
    assert (part.repeats.tolist(), part.weights.tolist()) == ([3, 1], [0.5, 1])
    assert part.text_starts.tolist() == [0, 2, 3]
    bag, _ = token_bags(["red thing"], TINY.buckets, TINY.tokens)
    assert part.tokens[: part.token_starts[1]].tolist() == bag.tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, "no_image"),
        ({"image": b"<html>"}, "undecodable"),
        ({"image": scanned(1500, 900)}, "undecodable"),
        ({"texts": [caption(None)]}, "no_text"),
        ({"texts": []}, "no_text"),
        ({"texts": None}, "no_text"),
        ({"repeats": 0, "image": None}, "not_kept"),
    ],
    ids=["none", "a page", "hours of scans", "null text", "no texts", "null texts", "no times"],
)
def test_a_row_that_cannot_be_learnt_from_is_left_out_and_counted(cached, changes, reason):
    [part], [said] = cached([row(0), row(1, **changes), row(2)])
    assert said["left_out"] == {"no_image": 0, "undecodable": 0, "no_text": 0, reason: 1}
    assert [uid.tobytes() for uid in part.uids] == [row(0)["uid"], row(2)["uid"]]
    assert part.images[:, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_missing_repeats_and_weights_are_one(cached):
    [part], _ = cached([row(0, repeats=None, loss_weight=None)])
    assert (part.repeats.tolist(), part.weights.tolist()) == ([1], [1])


def test_a_shard_of_which_nothing_is_left_is_empty(cached):
    [part], [said] = cached([row(0, image=None)])
    assert (said["rows"], part.images.shape) == (0, (0, 16, 16, 3))


def test_batches_of_rows_within_a_file_do_not_matter(cached, monkeypatch):
    monkeypatch.setattr("clipmill.stages.clip.cache.BATCH_ROWS", 3)
    [part], _ = cached([row(i, **({"image": None} if i == 1 else {})) for i in range(8)])
    assert [uid.tobytes() for uid in part.uids] == [row(i)["uid"] for i in (0, *range(2, 8))]
    for stored, i in zip(part.images, (0, *range(2, 8)), strict=True):
        image = cv2.imdecode(np.frombuffer(row(i)["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(stored, square(image, 16))


def test_images_are_mapped_and_those_of_another_disk_as_a_copy(cached, tmp_path, monkeypatch):
    [mapped], said = cached([row(i) for i in range(3)])
    assert isinstance(mapped.images, np.memmap)
    remote = f"file://{tmp_path}/stage"
    monkeypatch.setattr(Storage, "is_local", False, raising=False)
    monkeypatch.setattr(Storage, "__init__", _remote(Storage.__init__))
    [read] = read_cached(remote, said)
    assert isinstance(read.images, np.memmap)
    assert read.images.filename != mapped.images.filename
    np.testing.assert_array_equal(read.images, mapped.images)


def _remote(init):
    def begin(self, uri):
        init(self, uri)
        self.is_local = False

    return begin


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_torn_cache_is_refused_with_what_to_delete(suffix, cached, tmp_path):
    _, said = cached([row(0), row(1)])
    file = tmp_path / "stage" / "cache" / f"00000.parquet.{suffix}"
    whole = file.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"{}"):
        file.write_bytes(torn)
        with pytest.raises(StageError, match=r"damaged cache of 00000\.parquet") as refused:
            list(read_cached(str(tmp_path / "stage"), said))
        assert "delete that folder and the calls-* folder" in refused.value.args[2]
