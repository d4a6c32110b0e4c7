"""Task folders: each thing that can be wrong is found, named by place, and nothing else is."""

import os
import tarfile

import pytest

from clipmill.metadata.storage import Storage
from clipmill.stages.ops.tasks.check import check
from clipmill.stages.ops.tasks.folders import (
    CLASSNAMES,
    NSHARDS,
    TEMPLATES,
    Sample,
    content_digest,
    describe,
    names,
    samples,
)
from tests.hostile_pictures import scanned
from tests.stages.task_folders import NAMES, picture, write_tar


def test_a_task_is_described_by_its_files(tasks):
    folder = Storage(str(tasks))
    assert names(folder) == ["colours", "words"]
    colours, findings = describe(folder, "colours")
    assert (colours.is_retrieval, colours.classnames, findings) == (False, tuple(NAMES), [])
    assert colours.templates[0] == "{c}"
    assert describe(folder, "words")[0].is_retrieval


def test_samples_are_decoded_with_their_truth(tasks):
    folder = Storage(str(tasks))
    first, *_, last = samples(folder, describe(folder, "colours")[0])
    assert (first.key, first.label, first.rgb.shape) == ("00", 0, (9, 12, 3))
    assert first.rgb[5, 5].tolist() == [255, 0, 0]
    assert (last.key, last.label) == ("19", 4)
    first, *_ = samples(folder, describe(folder, "words")[0])
    assert first.captions == ("red 00", "thing 00")


def test_the_type_file_decides_where_there_is_one(tasks):
    (tasks / "words" / "dataset_type.txt").write_text("retrieval\n")
    (tasks / "words" / CLASSNAMES).write_text("one\n")
    assert describe(Storage(str(tasks)), "words")[0].is_retrieval


def test_a_sample_begins_where_the_key_changes_or_a_suffix_repeats(tasks):
    members = {"a.png": picture(0), "a.cls": b"0", "x/a.png": picture(1), "x/a.cls": b"1"}
    write_tar(tasks / "colours" / "test" / "0.tar", members)
    folder = Storage(str(tasks))
    found = list(samples(folder, describe(folder, "colours")[0]))
    assert [sample.label for sample in found if isinstance(sample, Sample)] == [0, 1]


SPOILT = {
    "no class names": (lambda t: os.remove(t / CLASSNAMES), CLASSNAMES, "no such file"),
    "empty class names": (lambda t: (t / CLASSNAMES).write_text(""), CLASSNAMES, "empty"),
    "too few class names": (
        lambda t: (t / CLASSNAMES).write_text("\n".join(NAMES[:4])),
        "key 04",
        "class 4, and classnames.txt names 4",
    ),
    "a blank class name": (
        lambda t: (t / CLASSNAMES).write_text("red\n\nblue\ngrey\nwhite\n"),
        f"{CLASSNAMES}, line 2",
        "without a name",
    ),
    "no templates": (lambda t: os.remove(t / TEMPLATES), TEMPLATES, "no such file"),
    "a template without its place": (
        lambda t: (t / TEMPLATES).write_text("{c}\na photo\n"),
        f"{TEMPLATES}, line 2",
        "has no {c}",
    ),
    "a template of another kind": (
        lambda t: (t / TEMPLATES).write_text("a {} thing\n"),
        f"{TEMPLATES}, line 1",
        "has no {c}",
    ),
    "a template that asks more of a name": (
        lambda t: (t / TEMPLATES).write_text("a {c.colour} thing\n"),
        f"{TEMPLATES}, line 1",
        "has no {c}",
    ),
    "a template of 2 GB": (
        lambda t: (t / TEMPLATES).write_text("{c}\na {c:>2000000000}\n"),
        f"{TEMPLATES}, line 2",
        "says more of {c} than its place",
    ),
    "a template whose places have places": (
        lambda t: (t / TEMPLATES).write_text("a {c:{c}}\n"),
        f"{TEMPLATES}, line 1",
        "says more of {c} than its place",
    ),
    "a template of a thousand names": (
        lambda t: (t / TEMPLATES).write_text("a " + "{c} " * 4000),
        f"{TEMPLATES}, line 1",
        "longer than 10,000 characters",
    ),
    "more templates than are read": (
        lambda t: (t / TEMPLATES).write_text("a {c}\n" * 1001),
        TEMPLATES,
        "1,001 lines, and at most 1,000 are read",
    ),
    "more class names than are read": (
        lambda t: (t / CLASSNAMES).write_text("a\n" * 100_001),
        CLASSNAMES,
        "100,001 lines, and at most 100,000 are read",
    ),
    "a text file of holes": (
        lambda t: os.truncate(t / CLASSNAMES, 10 << 30),
        CLASSNAMES,
        "10,737,418,240 bytes, and at most 8,388,608 are read",
    ),
    "a number of a thousand digits": (
        lambda t: (t / NSHARDS).write_text("9" * 5000),
        NSHARDS,
        "holds '999",
    ),
    "a number of many shards": (
        lambda t: (t / NSHARDS).write_text("9" * 9),
        NSHARDS,
        "says 999999999, and 1.tar is missing",
    ),
    "no number of shards": (lambda t: os.remove(t / NSHARDS), NSHARDS, "no such file"),
    "a number that is none": (lambda t: (t / NSHARDS).write_text("one"), NSHARDS, "'one'"),
    "a shard too few": (lambda t: (t / NSHARDS).write_text("2"), NSHARDS, "1.tar is missing"),
    "a shard too many": (
        lambda t: write_tar(t / "test" / "1.tar", {}),
        NSHARDS,
        "1.tar is never read",
    ),
    "a shard that is none": (
        lambda t: (t / "test" / "0.tar").write_bytes(b"<html>" * 200),
        "0.tar",
        "cannot be read",
    ),
    "an empty shard": (lambda t: write_tar(t / "test" / "0.tar", {}), "colours", "no sample"),
}
IN_A_SAMPLE = {
    "a page for a picture": ({"a.png": b"<html>", "a.cls": b"0"}, "not_an_image"),
    "hours of scans": ({"a.jpg": scanned(1500, 900), "a.cls": b"0"}, "too_costly"),
    "half a picture": ({"a.png": picture(0)[:60], "a.cls": b"0"}, "truncated"),
    "no picture": ({"a.gif": b"", "a.cls": b"0"}, "without a picture"),
    "no class": ({"a.png": picture(0)}, "without a KEY.cls"),
    "a class that is a word": ({"a.png": picture(0), "a.cls": b"red"}, "holds b'red'"),
    "a class below 0": ({"a.png": picture(0), "a.cls": b"-1"}, "class -1"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_with_a_task_is_found(tasks, case):
    spoil, where, found = SPOILT[case]
    spoil(tasks / "colours")
    fatal = [finding for finding in check(str(tasks)) if finding.is_fatal]
    assert fatal, case
    assert where in fatal[0].where
    assert found in fatal[0].found
    assert all("words" not in finding.where for finding in fatal)


@pytest.mark.parametrize("case", IN_A_SAMPLE)
def test_what_is_wrong_with_a_sample_is_found_and_its_neighbours_are_read(tasks, case):
    members, found = IN_A_SAMPLE[case]
    good = {"z.png": picture(1), "z.cls": b"1"}
    write_tar(tasks / "colours" / "test" / "0.tar", {**members, **good})
    [finding] = [finding for finding in check(str(tasks)) if finding.is_fatal]
    assert found in finding.found
    assert finding.where == "colours/test/0.tar, key a"


def test_a_sample_above_the_limit_is_found_and_its_neighbours_are_read(tasks, monkeypatch):
    monkeypatch.setenv("CLIPMILL_MAX_TASK_SAMPLE_BYTES", "5000")
    shard = tasks / "colours" / "test" / "0.tar"
    large = {"a.cls": b"0", **{f"a.{i}": bytes(2000) for i in range(3)}, "a.png": picture(0)}
    write_tar(shard, {**large, "z.png": picture(1), "z.cls": b"1"})
    [finding] = [finding for finding in check(str(tasks)) if finding.is_fatal]
    assert finding.found == "a sample of more than 5,000 bytes"
    assert finding.where == "colours/test/0.tar, key a"


def test_a_member_that_ends_before_it_begins_ends_its_shard(tasks):
    """Read on from where it says, it would be read for ever."""
    good, member = tarfile.TarInfo("0.png"), tarfile.TarInfo("a.png")
    member.size = -512
    shard = tasks / "colours" / "test" / "0.tar"
    shard.write_bytes(good.tobuf() + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    found = [finding.found for finding in check(str(tasks)) if finding.is_fatal]
    assert "ends before it begins" in found[0]


@pytest.mark.parametrize(("other", "is_fatal"), [(b"a red thing", False), (b"", True)])
def test_pictures_without_a_caption_are_told_and_are_a_fault_where_none_has_one(
    tasks, other, is_fatal
):
    members = {"a.png": picture(0), "a.txt": b"\n \n", "b.png": picture(1), "b.txt": other}
    write_tar(tasks / "words" / "test" / "0.tar", members)
    first, *_ = samples(Storage(str(tasks)), describe(Storage(str(tasks)), "words")[0])
    assert (first.key, first.captions) == ("a", ())
    (finding,) = check(str(tasks))
    assert finding.is_fatal == is_fatal
    assert f"{1 + is_fatal} of 2 pictures have no caption" in finding.found


def test_names_that_cannot_be_told_apart_or_have_no_picture_are_no_fault_but_told(tasks):
    (tasks / "colours" / CLASSNAMES).write_text("red\nred\nblue\ngrey\nwhite\nblack\n")
    told = check(str(tasks))
    assert not any(finding.is_fatal for finding in told)
    assert [finding.found for finding in told] == [
        "2 classes are named 'red': no model can tell them apart",
        "1 of 6 classes have no picture: 'black'",
    ]


def test_a_folder_without_tasks_is_found(tmp_path):
    assert [finding.found for finding in check(str(tmp_path))] == ["no task"]
    assert [finding.found for finding in check(str(tmp_path / "a"))] == ["no such folder"]


def test_a_task_given_for_a_folder_of_them_is_found(tasks):
    assert [(finding.found, finding.do) for finding in check(str(tasks / "colours"))] == [
        ("a task, not a folder of them", "give the folder above it")
    ]


@pytest.mark.parametrize("file", [CLASSNAMES, "test/0.tar", NSHARDS])
def test_the_digest_changes_with_any_byte_and_not_with_the_time(tasks, file):
    folder, path = Storage(str(tasks)), tasks / "colours" / file
    before = content_digest(folder, "colours"), content_digest(folder, "words")
    os.utime(path, (1, 1))
    assert content_digest(folder, "colours") == before[0]
    path.write_bytes(path.read_bytes() + b" ")
    assert content_digest(folder, "colours") != before[0]
    assert content_digest(folder, "words") == before[1]
