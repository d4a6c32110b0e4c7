"""WebDataset: grouping, members, ids, and tars that are broken."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.metadata.uid import uid_of
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.stages.ingest.webdataset import WebDataset, samples


def tar_of(*members: tuple[str, bytes | str | dict]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            if isinstance(data, dict):
                data = json.dumps(data)
            if isinstance(data, str):
                data = data.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def rows_of(tmp_path, pool_of):
    """Rows of one tar, 00000.tar."""

    def rows_of(*members, **settings) -> list[dict]:
        (tmp_path / "00000.tar").write_bytes(tar_of(*members))
        return pool_of(WebDataset(path=str(tmp_path), **settings)).to_pylist()

    return rows_of


def test_a_sample_of_img2dataset_keeps_all_that_its_json_says(rows_of):
    info = {
        "uid": "0f" * 16,
        "url": "http://a",
        "caption": "json's",
        "width": 5,
        "height": 6,
        "original_width": 50,
        "original_height": 60,
        "sha256": "cd" * 32,
    }
    rows = rows_of(("000.jpg", b"jpeg"), ("000.json", info), ("000.txt", "ünï"))
    assert rows == [
        {
            "uid": b"\x0f" * 16,
            "image": b"jpeg",
            "image_bytes": 4,
            "text": "ünï",
            "url": "http://a",
            "original_width": 50,
            "original_height": 60,
            "width": 5,
            "height": 6,
            "sha256": hashlib.sha256(b"jpeg").hexdigest(),
            "reason": None,
        }
    ]


def test_a_digest_that_others_state_is_not_trusted(rows_of):
    """Some write one for all rows, and img2dataset that of the file before it resized it."""
    info = {"sha256": "cd" * 32}
    samples = [(f"{i}.{suffix}", data) for i in range(3) for suffix, data in
               (("jpg", f"jpeg {i}"), ("json", info))]  # fmt: skip
    rows = rows_of(*samples)
    assert [row["sha256"] for row in rows] == [
        hashlib.sha256(f"jpeg {i}".encode()).hexdigest() for i in range(3)
    ]
    assert [row["reason"] for row in rows] == [None] * 3


def test_the_first_samples_are_shown_without_reading_the_others(tmp_path):
    whole = tar_of(*((f"{i}.jpg", b"x" * (1 << 20)) for i in range(9)))
    (tmp_path / "0.tar").write_bytes(whole[: 5 << 20])  # cut: reading on would fail
    assert WebDataset(path=str(tmp_path)).head(2)["image_bytes"].to_pylist() == [1 << 20] * 2


def test_without_a_json_the_bytes_are_hashed_and_the_place_stands_for_the_url(rows_of):
    (row,) = rows_of(("a/7.png", b"png"), ("a/7.txt", "t"))
    assert row["sha256"] == hashlib.sha256(b"png").hexdigest()
    assert row["uid"] == uid_of("00000.tar/a/7", "t")
    assert row["url"] is None


def test_an_image_of_no_known_format_stays_as_export_wrote_it(rows_of):
    (row,) = rows_of(("0.bin", b"<html>"), ("0.json", {}), ("0.txt", "t"))
    assert row["image"] == b"<html>"


def test_without_a_txt_the_caption_is_the_jsons(rows_of):
    (row,) = rows_of(("0.jpg", b"x"), ("0.json", {"url": "u", "caption": "c"}))
    assert row["text"] == "c"
    assert row["uid"] == uid_of("u", "c")


def test_a_sample_that_lacks_something_keeps_its_place_with_a_reason(rows_of):
    rows = rows_of(
        ("0.txt", "no image"),
        ("1.jpg", b"x" * 100),
        ("1.txt", "too large"),
        ("2.jpg", b"x"),
        ("2.json", "{"),
        ("3.jpg", b"x"),
        ("3.json", {"uid": "short"}),
        ("4.jpg", b"x"),
        ("4.json", {"width": "wide"}),
        ("5.jpg", b"x"),
        ("5.txt", b"\xff"),
        ("6.jpg", b""),
        max_member_bytes=99,
    )
    assert [row["reason"] for row in rows] == [
        *("no_image", "too_large", "unparsable_json", "bad_uid", "bad_value", "bad_value", None)
    ]
    assert [row["image"] is None for row in rows] == [True, True] + [False] * 5
    assert [row["text"] for row in rows][:2] == ["no image", "too large"]


def test_names_that_would_leave_the_folder_stay_names(rows_of, tmp_path):
    name = str(tmp_path / "evil")
    rows = rows_of(("../../evil.jpg", b"a"), (f"{name}.jpg", b"b"), ("./x.y.jpg", b"c"))
    assert [row["image"] for row in rows] == [b"a", b"b", None]
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


def test_a_hidden_file_is_no_member_and_splits_no_sample(rows_of):
    """A Mac's tar puts one beside each file."""
    rows = rows_of(("./._0.jpg", b"x"), ("./0.jpg", b"a"), ("./._0.txt", b"x"), ("./0.txt", "red"))
    assert [(row["image"], row["text"], row["reason"]) for row in rows] == [(b"a", "red", None)]


KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def test_folders_are_no_members_and_what_leads_out_of_the_tar_is_counted(tmp_path, pool_of):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, kind in enumerate((tarfile.DIRTYPE, *KINDS)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    pool = pool_of(WebDataset(path=str(tmp_path)))
    assert pool["reason"].to_pylist() == ["unreadable"] * len(KINDS)
    assert pool["image"].null_count == len(KINDS)


def test_a_hard_link_is_the_file_that_it_leads_to(tmp_path, pool_of):
    """As tar writes it, past what is read at once; a link to a link, and to one too large."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"first")
    (folder / "1.jpg").write_bytes(bytes(3 << 20))
    for number, of in ((2, 0), (3, 2), (4, 1)):
        (folder / f"{number}.jpg").hardlink_to(folder / f"{of}.jpg")
    (folder / "5.jpg").write_bytes(b"last")
    names = [f"{number}.jpg" for number in range(6)]
    subprocess.run(["tar", "cf", tmp_path / "0.tar", "-C", folder, *names], check=True)
    rows = pool_of(WebDataset(path=str(tmp_path), max_member_bytes=2 << 20)).to_pylist()
    assert [row["image"] for row in rows] == [b"first", None, b"first", b"first", None, b"last"]
    assert [row["reason"] for row in rows] == [None, "too_large", None, None, "too_large", None]


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz"])
def test_a_packed_tar_is_read_as_it_is_unpacked_and_one_that_ends_early_fails(
    suffix, tmp_path, pool_of, run
):
    packed = gzip.compress(tar_of(("0/1.jpg", b"jpeg"), ("0/1.txt", "a dog"), ("0/2.jpg", b"two")))
    (tmp_path / f"1.{suffix}").write_bytes(packed)
    rows = pool_of(WebDataset(path=str(tmp_path)))
    assert rows["image"].to_pylist() == [b"jpeg", b"two"]
    assert rows["text"].to_pylist() == ["a dog", None]
    for part in (packed[:-9], packed[:40], b"no gzip"):
        (tmp_path / f"1.{suffix}").write_bytes(part)
        [shard] = run(WebDataset(path=str(tmp_path))).shards
        assert isinstance(shard, ShardError)
    (tmp_path / "0.tar").write_bytes(tar_of(("0.jpg", b"plain")))
    assert pool_of(WebDataset(path=str(tmp_path)))["image"].to_pylist() == [b"plain"], "as before"


def test_one_tar_is_one_shard_in_the_order_of_names(tmp_path, run):
    for number in (2, 0, 1):
        members = [(f"{i}.jpg", b"x") for i in range(number)]
        (tmp_path / f"{number}.tar").write_bytes(tar_of(*members))
    assert list(map(len, run(WebDataset(path=str(tmp_path))).shards)) == [0, 1, 2]


def test_more_samples_than_a_batch_come_in_order(rows_of):
    rows = rows_of(*((f"{i:05}.jpg", str(i).encode()) for i in range(2500)))
    assert [int(row["image"]) for row in rows] == list(range(2500))


WHOLE = tar_of(*((f"{i}.jpg", b"x" * 700) for i in range(9)))
BROKEN = bytearray(WHOLE)
BROKEN[3 * 1536 + 100 : 3 * 1536 + 200] = b"\xff" * 100  # the fourth member's header


@pytest.mark.parametrize(
    "data",
    [b"", WHOLE[:100], WHOLE[:1000], WHOLE[: 4 * 1536], WHOLE[: 9 * 1536], BROKEN, WHOLE + WHOLE],
    ids=["empty", "header", "data", "boundary", "no end", "broken header", "cat"],
)
def test_a_tar_that_is_not_whole_fails_its_shard_by_name(tmp_path, run, data):
    (tmp_path / "0.tar").write_bytes(data)
    (tmp_path / "1.tar").write_bytes(WHOLE)
    broken, good = run(WebDataset(path=str(tmp_path))).shards
    assert isinstance(broken, ShardError)
    assert "0.tar" in broken.args[1]
    assert len(good) == 9


def test_a_folder_without_tars_stops_the_stage(tmp_path, run):
    with pytest.raises(StageError, match="no file"):
        run(WebDataset(path=str(tmp_path)))


def samples_of(members, max_member_bytes=9, max_sample_bytes=9) -> list:
    given = ((name, len(data), lambda data=data: data) for name, data in members)
    return list(samples(given, max_member_bytes, max_sample_bytes))


NAMES = st.tuples(st.sampled_from(["0", "1", "a/0"]), st.sampled_from(["jpg", "txt", "a.json"]))


@settings(deadline=None)
@given(st.lists(NAMES))
def test_samples_keep_every_member_in_order_and_none_holds_a_suffix_twice(names):
    given = ((f"{key}.{suffix}", bytes([i])) for i, (key, suffix) in enumerate(names))
    found = samples_of(given)
    flat = [(key, suffix) for key, parts in found for suffix in parts]
    assert flat == names  # no member is lost, moved, or in a sample of another key
    data = [it for _, parts in found for it in parts.values()]
    assert data == [bytes([i]) for i in range(len(names))]
    for (key, parts), (next_key, next_parts) in pairwise(found):
        assert key != next_key or next(iter(next_parts)) in parts  # and no sample ends early


def test_a_repeated_suffix_starts_a_new_sample_of_the_same_key():
    found = samples_of([("0.jpg", b"1"), ("0.txt", b"2"), ("0.JPG", b"3"), ("0.txt", b"4")])
    assert found == [("0", {"jpg": b"1", "txt": b"2"}), ("0", {"jpg": b"3", "txt": b"4"})]


def test_members_above_the_limit_of_their_sample_are_not_read():
    """200 holes of 100 MB each are a tar of 100 kB."""
    read = []
    given = [(f"0.{i}", 100, lambda i=i: read.append(i) or b"") for i in range(200)]
    [(_, parts)] = samples([*given, ("0.txt", 50, bytes)], 100, 350)
    assert read == [0, 1, 2]
    assert list(parts.values()) == [b""] * 3 + ["too_large"] * 197 + [b""]


def test_a_sample_above_the_limit_is_too_large_and_spares_its_neighbours(rows_of):
    body = b"x" * 1000
    large = [(f"1.{suffix}", body) for suffix in ("jpg", "png", "webp")]
    rows = rows_of(("0.jpg", body), *large, ("1.txt", "t"), ("2.jpg", body), max_sample_bytes=2500)
    assert [row["reason"] for row in rows] == [None, "too_large", None]
    assert rows[1]["text"] == "t"


def header(kind: bytes, size: int, name: str = "././@LongLink") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_a_tar_whose_header_states_gigabytes_fails_its_shard_by_name(tmp_path, run, kind):
    for name in ("0", "1"):  # as its first member, and later
        whole = (b"" if name == "0" else WHOLE[:1536]) + header(kind, 300 << 20)
        with (tmp_path / f"{name}.tar").open("wb") as file:
            file.write(whole)
            file.truncate(len(whole) + (400 << 20))
    for shard in run(WebDataset(path=str(tmp_path))).shards:
        assert isinstance(shard, ShardError)
        assert "a header of 314,572,800 bytes, at most 1,048,576 are read" in shard.args[0]


def test_a_tar_of_two_thousand_long_names_fails_its_shard_by_name(tmp_path, run):
    names = (header(b"L", 1) + b"a".ljust(512, b"\0")) * 2000
    (tmp_path / "0.tar").write_bytes(WHOLE[:1536] + names)
    [shard] = run(WebDataset(path=str(tmp_path))).shards
    assert isinstance(shard, ShardError)
    assert "0.tar" in shard.args[1]


def test_a_byte_order_mark_is_no_letter_of_a_caption(rows_of):
    members = ("0.jpg", b"a"), ("0.txt", "\ufeffa shoe"), ("1.jpg", b"b"), ("1.json", BOTH)
    assert [row["text"] for row in rows_of(*members)] == ["a shoe", "json's"]


BOTH = {"caption": "\ufeffjson's", "meta": {"en": ["two", "three"], "link": "u", "id": "0f" * 16}}


def test_keys_of_the_json_are_named_by_dotted_paths(rows_of):
    members = (
        ("0.jpg", b"a"),
        ("0.txt", "a shoe"),
        ("0.json", BOTH),
        ("1.jpg", b"b"),
        ("1.txt", "x"),
    )
    keys = {"caption_col": "meta.en", "url_col": "meta.link", "uid_col": "meta.id"}
    first, second = rows_of(*members, **keys, all_captions=True)
    assert (first["text"], first["url"], first["uid"]) == ("two", "u", b"\x0f" * 16)
    assert [text["text"] for text in first["captions"]] == ["three"]
    assert (second["text"], second["captions"], second["reason"]) == ("x", None, None)


@pytest.mark.parametrize("url", [float("nan"), ["http://a"], None, ""])
def test_samples_whose_url_is_none_have_uids_of_their_own(url, rows_of):
    rows = rows_of(*((f"{i}.{kind}", {"url": url}) for i in range(3) for kind in ("jpg", "json")))
    assert [row["uid"] for row in rows] == [uid_of(f"00000.tar/{i}", None) for i in range(3)]
