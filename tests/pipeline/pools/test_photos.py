"""`clipmill pool photos` on a small package made here, in the cache where a download would lie."""

import gzip
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.pools.photos import CLASSES, HEADS, LISTED, PACKAGE, SIDE_PX, build_photos
from clipmill.stages.ops.images.decode import decode
from tests.debs import write_deb

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not on Debian")
PHOTOS, TEST = 200, 20


def idx(count: int) -> tuple[bytes, bytes]:
    """Grey pictures, each as bright as its number says, and labels in turn."""
    bright = np.arange(count, dtype=np.uint8).repeat(SIDE_PX**2).tobytes()
    labels = (np.arange(count) % len(CLASSES)).astype(np.uint8).tobytes()
    pixels, numbers = (
        gzip.compress(bytes(head) + data, 1)
        for head, data in zip(HEADS, (bright, labels), strict=True)
    )
    return pixels, numbers


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[str, bytes]:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path))
    named = {}
    for part, count in (("train", PHOTOS), ("t10k", TEST)):
        pixels, labels = idx(count)
        named[f"share/{part}-images-idx3-ubyte.gz"] = pixels
        named[f"share/{part}-labels-idx1-ubyte.gz"] = labels
    return named


def test_a_fifth_of_the_captions_name_another_class_and_lists_have_known_shares_of_them(
    tmp_path, files, clipmill
):
    write_deb(tmp_path, PACKAGE, files)
    out = tmp_path / "pool"
    said = clipmill("pool", "photos", "--out", out)
    truth = {row["uid"]: row for row in pq.read_table(out / "truth.parquet").to_pylist()}
    rows = pq.read_table(out / "metadata").to_pylist()
    good = sum(row["is_good"] for row in truth.values())
    assert said.out == (
        f"{out}: 200 rows in {out}/metadata, {good} of them without a fault; 20 test pictures\n"
    )
    assert 0.7 <= good / PHOTOS <= 0.9
    for row in rows:
        known = truth[row["uid"]]
        number = int(decode(row["image"])[0, 0, 0])  # as bright as that
        shown = [
            n
            for n, names in enumerate(CLASSES)
            if any(words_in(name, row["text"]) for name in names)
        ]
        own = number % len(CLASSES)
        assert known["concept"] == CLASSES[own][0]
        assert (own in shown) == known["is_good"] == (known["text_issue"] is None)
        assert (row["text"] == known["text_true"]) == known["is_good"]
    for percent in LISTED:
        uids = (out / f"lists/swapped_{percent}.txt").read_text().split()
        assert len(set(uids)) == len(uids) == good
        assert sum(not truth[uid]["is_good"] for uid in uids) == round(good * percent / 100)
    with tarfile.open(out / "eval/fashion_mnist/test/0.tar") as tar:
        assert tar.extractfile("00013.cls").read() == b"3"
        assert len(tar.getnames()) == 2 * TEST
    before = (out / "pool.json").stat().st_mtime_ns
    assert build_photos(out)["good"] == good
    assert (out / "pool.json").stat().st_mtime_ns == before


def words_in(name: str, text: str) -> bool:
    return f" {name} " in f" {text.replace(',', ' ')} "


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda files: files.popitem(), "t10k-labels"),
        (
            lambda files: files.update({"share/train-labels-idx1-ubyte.gz": b"none"}),
            "Not a gzipped",
        ),
        (lambda files: files.update({"share/train-labels-idx1-ubyte.gz": idx(3)[1]}), "reshape"),
    ],
    ids=["less", "other bytes", "other counts"],
)
def test_a_package_that_has_changed_is_named(tmp_path, files, change, found):
    change(files)
    write_deb(tmp_path, PACKAGE, files)
    with pytest.raises(StageError, match=f"(?s){found}.*where: package {PACKAGE}"):
        build_photos(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
