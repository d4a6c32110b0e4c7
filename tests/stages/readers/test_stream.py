"""Batches made as they are learnt from: what decides them, what memory and time know, bad data."""

import gc
import os
from collections import Counter
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.damage import DamagedError
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.subset import chooser_of
from clipmill.stages.ops.tables.exports import numbered
from clipmill.stages.readers import _draws as draws
from clipmill.stages.readers._edits import Edits
from clipmill.stages.readers.streamed import AHEAD, FAULTS, Streamed, prepare
from tests.stages.clip.exported import (
    TINY_READS,
    batches_of,
    caption,
    row,
    small_reading,
    write_export,
)

ROWS = [row(i) for i in range(30)]


@pytest.fixture
def streamed(tmp_path):
    """Batches of an export of these shards."""
    made = []

    def make(*shards, size=8, seed=0, threads=1, subset=None, **more):
        data = str(tmp_path / "export")
        if shards:
            write_export(tmp_path / "export", *shards)
            regroup(tmp_path / "export" / "out")
        names = sorted(path.name for path in (tmp_path / "export" / "out").glob("*.parquet"))
        counts = [pq.read_metadata(f"{data}/out/{name}").num_rows for name in names]
        files = [{"file": name, "rows": rows} for name, rows in zip(names, counts, strict=True)]
        more = {"augment": "crop", "choose": chooser_of(data, None, subset), **more}
        reading = small_reading(data=data, **more)
        said = [prepare(reading, file, None) for file in numbered(files)]
        made.append(Streamed(reading, said, size=size, seed=seed, threads=threads))
        made[-1].said = said
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def regroup(out):
    """Row groups of four rows."""
    for path in out.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=4)


def rows_of(batches, count):
    return np.concatenate([batches[n].rows for n in range(count)])


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@pytest.mark.parametrize("sampling", ["epochs", "shards"])
def test_batch_n_is_the_same_whatever_was_asked_for_before_and_whatever_the_threads(
    sampling, streamed
):
    first = streamed(ROWS[:10], [], ROWS[10:], sampling=sampling)
    held = [first[n] for n in range(6)]
    backwards = streamed(sampling=sampling, threads=3)
    for n in (5, 0, 4, 2):
        assert same(backwards[n], held[n])
    other = streamed(sampling=sampling, seed=1)
    assert not same(other[0], held[0])


@pytest.mark.parametrize("of", [2, 8])
def test_the_parts_of_ranks_are_the_batch_though_there_are_fewer_shards(of, streamed):
    whole = streamed(ROWS[:20])[2]
    parts = [streamed().of_rank(2, rank, of) for rank in range(of)]
    for name in ("pixels", "tokens", "weights", "rows", "index"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


@pytest.fixture
def two_streams(monkeypatch):
    """A batch of 32 is large."""
    monkeypatch.setattr(draws, "ROWS_A_STREAM", 16)


@pytest.mark.usefixtures("two_streams")
def test_the_streams_of_a_large_batch_are_shared_by_ranks(streamed):
    """Rank 1 of 2 reads no row group of the first stream's share of an epoch."""
    batches = streamed(ROWS * 2, size=32)
    assert batches.draws.streams == 2
    whole, part = batches[0], streamed(size=32).of_rank(0, 1, 2)
    np.testing.assert_array_equal(part.rows, whole.rows[16:])


@pytest.mark.usefixtures("two_streams")
@pytest.mark.parametrize("sampling", ["epochs", "shards"])
def test_two_ranks_have_the_batch_of_one_bad_pictures_and_all_texts_included(sampling, streamed):
    texts = [[caption(f"word {i}"), caption(f"other words {i}")][: 1 + i % 2] for i in range(60)]
    bad = {"image": b"no"}
    rows = [row(i, texts=texts[i], **(bad if i % 9 == 4 else {})) for i in range(60)]
    settings = {"size": 32, "sampling": sampling, "texts": "all"}
    one = streamed(rows[:20], rows[20:23], rows[23:], **settings)
    first, second = streamed(**settings), streamed(**settings, threads=2)
    for n in (0, 1):  # into the second epoch
        whole, a, b = one[n], first.of_rank(n, 0, 2), second.of_rank(n, 1, 2)
        for name in ("pixels", "tokens", "weights", "rows", "index"):
            joined = np.concatenate([getattr(a, name), getattr(b, name)])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        bounds, place = np.r_[a.starts, b.starts + len(a.tokens)], b.image_of + len(a.rows)
        np.testing.assert_array_equal(bounds, whole.starts)
        np.testing.assert_array_equal(np.r_[a.image_of, place], whole.image_of)
        counted = {reason: a.replaced[reason] + b.replaced[reason] for reason in FAULTS}
        assert counted == whole.replaced
        assert counted["undecodable"] > 0


def test_an_epoch_has_each_row_as_often_as_it_repeats_and_not_in_one_heap(streamed):
    rows = [row(i, repeats={2: 3, 5: 0}.get(i, 1)) for i in range(12)]
    batches = streamed(rows, size=13)
    for n in range(4):
        assert Counter(batches[n].rows) == {**dict.fromkeys((*range(5), *range(6, 12)), 1), 2: 3}
    assert batches[0].rows.tolist() != batches[1].rows.tolist()


def test_rows_of_a_batch_have_their_own_text_weight_number_and_a_crop_of_their_picture(streamed):
    rows = [row(i, loss_weight=i) for i in range(9)]
    batch = streamed(rows[:4], rows[4:], size=9)[0]
    assert batch.weights.tolist() == batch.rows.tolist() == batch.index.tolist()
    bags = np.split(batch.tokens, batch.starts[1:])
    colours = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255), 3: (99, 99, 99)}
    for i, bag, pixels in zip(batch.rows, bags, batch.pixels, strict=True):
        own, _ = TINY_READS.tokenize([rows[i]["texts"][0]["text"]])
        assert bag.tolist() == own.tolist()
        assert (pixels.transpose(1, 2, 0) == colours[i % 4]).all()


def test_views_and_texts_are_drawn_as_the_other_reader_draws_them(streamed, cached, tmp_path):
    words = ["one two", "three four", "five six"]
    rows = [row(i, texts=[caption(f"{w} {i}") for w in words]) for i in range(12)]
    way = {"image_views": 2, "text_views": 2, "edits": Edits({"one": ("1",), "four": ("4",)})}
    parts, _ = cached(rows, **way)
    for texts in ("uniform", "first", "all"):
        ours = streamed(size=12, texts=texts, augment="shift", **way)
        theirs = batches_of(parts, size=12, texts=texts, **way)
        for n in range(3):
            mine, other = ours[n], theirs[n]
            order, counterpart = np.argsort(mine.rows), np.argsort(other.rows)
            views = [batch.pixels.reshape(2, 12, 3, 16, 16) for batch in (mine, other)]
            np.testing.assert_array_equal(views[0][:, order], views[1][:, counterpart])
            assert texts_of(mine, order) == texts_of(other, counterpart)


def texts_of(batch, order):
    bags = np.split(batch.tokens, batch.starts[1:])
    return [
        [b.tolist() for b, r in zip(bags, np.tile(batch.image_of, 2), strict=True) if r == i]
        for i in order
    ]


def test_a_subset_counts_as_it_says(streamed, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(row(i)["uid"].hex() for i in (3, 7, 7, 21)))
    batches = streamed(ROWS[:10], ROWS[10:], size=4, subset=str(tmp_path / "list.txt"))
    assert Counter(batches[0].rows) == {3: 1, 7: 2, 21: 1}
    assert sum(one["left_out"]["not_kept"] for one in batches.said) == 27


def test_pictures_that_do_not_decode_have_another_of_their_row_group_in_their_place(streamed):
    rows = [row(i, **({"image": b"<html>"} if i == 5 else {})) for i in range(8)]
    rows[2] = row(2, image=None)
    batches = streamed(rows, size=4)
    epoch = [batches[n] for n in range(2)]
    drawn = Counter(row for batch in epoch for row in batch.rows)
    assert not {2, 5} & drawn.keys()
    assert drawn.total() == 8
    counted = [sum(batch.replaced[reason] for batch in epoch) for reason in FAULTS]
    assert counted == [1, 1]


@pytest.mark.parametrize("bad", [4, 5])
def test_it_stops_once_fewer_pictures_decode_than_a_batch_has(bad, streamed):
    """As a training that decodes all beforehand does: with a batch of them left it goes on."""
    rows = [row(i, **({"image": b"no"} if i % 2 and i < 2 * bad else {})) for i in range(12)]
    batches = streamed(rows, size=8)

    def epoch():
        return [batches[n] for n in range(9)]

    if bad == 4:
        assert sum(batch.replaced["undecodable"] for batch in epoch()) == 24  # of 6 epochs
        return
    with pytest.raises(StageError) as error:
        epoch()
    found, where, do = error.value.args
    assert found == "pictures of 5 of 12 rows do not decode, and a batch has 8"
    assert "00000.parquet, row group " in where
    assert "export the pictures again" in do


def test_a_row_group_without_any_picture_stops_and_names_itself(streamed):
    batches = streamed([row(i, **({"image": b"no"} if i > 3 else {})) for i in range(8)], size=4)
    with pytest.raises(StageError, match=r"no picture(.|\n)*00000\.parquet, row group 1"):
        assert batches[0], batches[1]


def test_rows_without_text_are_left_out_and_counted(streamed):
    batches = streamed([row(0), row(1, texts=[]), row(2)], size=2)
    assert sorted(batches[0].rows) == [0, 2]
    assert batches.said[0]["left_out"]["no_text"] == 1


def test_a_vanished_shard_names_itself(streamed, tmp_path):
    batches = streamed(ROWS[:10], size=4)
    os.remove(tmp_path / "export" / "out" / "00000.parquet")
    with pytest.raises((StageError, DamagedError), match=r"00000\.parquet"):
        batches[0]


def test_one_that_changed_since_it_was_counted_is_refused(streamed, tmp_path):
    batches = streamed(ROWS[:10], size=4)
    path = tmp_path / "export" / "out" / "00000.parquet"
    table = pq.read_table(path)
    more = pa.array([2] * 10, pa.int32())
    pq.write_table(table.set_column(table.column_names.index("repeats"), "repeats", more), path)
    with pytest.raises(StageError, match="other samples than when"):
        batches[0]


def test_it_is_known_which_shard_took_longest_to_read(streamed):
    batches = streamed(ROWS[:4], ROWS[4:8], size=8)
    batch = batches[0]
    assert batches.spent.keys() == {"00000.parquet", "00001.parquet"}
    batches.spent["00001.parquet"] += 100
    assert batches.files(batch.rows) == ["00001.parquet", "00000.parquet"]


def test_no_more_is_held_than_the_batches_ahead_and_two_row_groups_a_stream(streamed):
    batches = streamed(ROWS, size=8)
    for n in range(9):
        batches[n]
        assert len(batches._begun) <= AHEAD
    assert all(len(cache) <= 2 for cache in batches._cache)


def test_a_row_group_is_let_go_without_a_search_for_cycles(streamed):
    batches = streamed(ROWS, size=8)
    batches[0]
    groups = WeakSet(group for cache in batches._cache for group in cache.values())
    assert len(groups)
    gc.disable()
    try:
        batches.close()
        batches._begun.clear()
        batches._cache.clear()
        assert not len(groups)
    finally:
        gc.enable()


def test_negatives_are_drawn_as_from_a_cache_and_counted(streamed):
    rows = [row(i, negatives=[caption(f"no thing {i}")] if i % 3 else None) for i in range(30)]
    ours = streamed(rows[:10], rows[10:], negatives="negatives", threads=2)
    assert [one["no_negative"] for one in ours.said] == [4, 6]
    plain = streamed()
    for n in range(4):
        batch, captions = ours[n], plain[n]
        assert batch.rows.tolist() == captions.rows.tolist()
        assert batch.tokens[: len(captions.tokens)].tolist() == captions.tokens.tolist()
        numbers = batch.rows[batch.negative_of]
        assert numbers.tolist() == [i for i in batch.rows if i % 3]
        token_T, _ = TINY_READS.tokenize([f"no thing {i}" for i in numbers])
        assert batch.tokens[len(captions.tokens) :].tolist() == token_T.tolist()
    assert captions.negative_of is None
