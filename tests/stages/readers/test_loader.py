"""Batches: epochs, repeats, shifts, captions, and that only seed, n and rows decide."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXTS
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import SHIFT, Reading
from clipmill.stages.clip.cache import instead_of_single_words, usable
from clipmill.stages.readers.cached import diverse, gain_of
from clipmill.stages.towers.nano import token_bags
from tests.stages.clip.exported import TINY, batches_of, caption, row


def rows_of(batches, count):
    return np.concatenate([batches[n].rows for n in range(count)])


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_batch_n_is_the_same_whatever_was_asked_for_before(batches):
    forwards = batches()
    held = [forwards[n] for n in range(7)]
    backwards = batches_of(forwards.shards, size=8, seed=0)
    for n in reversed(range(7)):
        assert same(backwards[n], held[n])


def test_an_epoch_has_every_row_once_and_the_next_another_order(batches):
    rows = rows_of(batches(), 6)
    assert sorted(rows[:24]) == sorted(rows[24:]) == list(range(24))
    assert rows[:24].tolist() != rows[24:].tolist()


def test_epochs_follow_each_other_without_a_gap(batches):
    rows = rows_of(batches(size=10), 12)
    assert Counter(rows) == dict.fromkeys(range(24), 5)


def test_another_seed_gives_another_order(batches):
    first = batches()
    assert (
        rows_of(first, 3).tolist() != rows_of(batches_of(first.shards, size=8, seed=1), 3).tolist()
    )


def test_the_order_hangs_on_uids_and_not_on_shards(cached, batches):
    def uids(made):
        return [bytes(made.uid[int(i)].as_py()) for i in rows_of(made, 3)]

    one = batches()
    halves = [_cut(one.shards[1], 0, 6), _cut(one.shards[1], 6, 14)]
    assert uids(one) == uids(batches_of([*halves, one.shards[0]], size=8, seed=0))


def test_a_row_is_seen_as_often_as_it_repeats_and_not_in_one_heap(cached):
    parts, _ = cached([row(i, repeats=3 if i == 2 else 1) for i in range(10)])
    batches = batches_of(parts, size=4, seed=0)
    epochs = rows_of(batches, 30).reshape(10, 12)
    for rows in epochs:
        assert Counter(rows) == {**dict.fromkeys(range(10), 1), 2: 3}
    spreads = [np.ptp(np.flatnonzero(rows == 2)) for rows in epochs]
    assert np.mean(spreads) > 4  # 2 where copies stay together, 6.5 by chance


def test_each_copy_of_a_row_has_its_place_by_a_coin_of_its_own(cached):
    parts, _ = cached([row(i, repeats=i % 4) for i in range(20)])
    batches = batches_of(parts, size=4, seed=3)
    for epoch in range(2):
        coins = []
        for number, copies in enumerate(batches.shards[0].repeats):
            for copy in range(copies):
                purpose = f"epoch {epoch} copy {copy}"
                (coin,) = coin_hash(
                    batches.uid[number : number + 1], seed=3, stage="train.clip", purpose=purpose
                )
                coins.append((coin, copy, number))
        assert batches._order(epoch).tolist() == [number for *_, number in sorted(coins)]


def test_pictures_are_shifted_by_up_to_four_pixels_into_white(batches):
    made = batches()
    shifts = set()
    for n in range(9):
        batch = made[n]
        assert batch.pixels.shape == (8, 3, 16, 16)
        for pixels, number in zip(batch.pixels, batch.rows, strict=True):
            part = made.shards[int(number >= 10)]
            image = part.images[number - 10 * (number >= 10)]
            padded = np.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), constant_values=255)
            fits = {
                (y, x)
                for y in range(2 * SHIFT + 1)
                for x in range(2 * SHIFT + 1)
                if np.array_equal(pixels.transpose(1, 2, 0), padded[y : y + 16, x : x + 16])
            }
            assert fits
            shifts |= fits
    assert len(shifts) > 30


def test_captions_are_those_of_the_row_and_take_turns_by_hash(cached):
    texts = ["one", "two words", "and three words"]
    parts, _ = cached([row(i, texts=[caption(f"{t} {i}") for t in texts]) for i in range(8)])
    batches = batches_of(parts, size=8, seed=0)
    seen = Counter()
    for n in range(30):
        batch = batches[n]
        for bag, number in zip(np.split(batch.tokens, batch.starts[1:]), batch.rows, strict=True):
            own = [f"{text} {number}" for text in texts]
            bags = [token_bags([t], TINY.buckets, TINY.tokens)[0].tolist() for t in own]
            seen[bags.index(bag.tolist())] += 1
    assert min(seen[i] for i in range(3)) > 50


def test_the_original_is_taken_once_in_all_texts_and_equally_often_each_rewrite(cached):
    """LaCLIP draws uniformly from the original and its rewrites: 1 in M + 1 is the original."""
    words = ("an original", "one rewrite", "another rewrite", "a third rewrite")
    parts, _ = cached([row(n, texts=[caption(text) for text in words]) for n in range(40)])
    drawn = Counter(drawn_texts(batches_of(parts, size=40, seed=0), words, 250))
    count, share = sum(drawn.values()), 1 / len(words)
    sigma = (count * share * (1 - share)) ** 0.5
    assert count == 10_000
    assert all(abs(drawn[text] - count * share) < 5 * sigma for text in words), drawn
    again = list(drawn_texts(batches_of(parts, size=40, seed=0), words, 3))
    assert again == list(drawn_texts(batches_of(parts, size=40, seed=0), words, 3))
    assert again != list(drawn_texts(batches_of(parts, size=40, seed=1), words, 3))
    assert set(drawn_texts(batches_of(parts, size=40, seed=0, texts="first"), words, 3)) == {
        words[0]
    }


def drawn_texts(batches, words, count):
    """The text of every row of so many batches, known by its first token."""
    tokens, starts = token_bags(words, TINY.buckets, TINY.tokens)
    known = {
        tuple(tokens[a:b]): text for text, a, b in zip(words, starts, starts[1:], strict=False)
    }
    for n in range(count):
        batch = batches[n]
        ends = [*batch.starts[1:], len(batch.tokens)]
        for start, end in zip(batch.starts, ends, strict=True):
            yield known[tuple(batch.tokens[start:end])]


def test_a_text_of_one_word_gives_way_to_the_first(cached):
    words = ("an original", "two words")
    texts = [caption(text) for text in (words[0], "one", words[1], "")]
    parts, _ = cached([row(0, texts=texts)], [row(1, texts=[caption("a star")])])
    drawn = Counter(drawn_texts(batches_of(parts[:1], size=1, seed=0), words, 800))
    assert drawn[words[0]] / 800 == pytest.approx(0.75, abs=0.08)
    assert instead_of_single_words(["star"]) == ["star"], "an original of one word stays"


def test_weights_and_files_are_those_of_the_rows(cached):
    parts, _ = cached([row(0)], [row(1, image=None)], [row(i, loss_weight=i) for i in (2, 3)])
    batches = batches_of(parts, size=3, seed=0)
    batch = batches[0]
    assert dict(zip(batch.rows.tolist(), batch.weights.tolist(), strict=True)) == {0: 1, 1: 2, 2: 3}
    assert batches.files(np.array([2, 1])) == ["00002.parquet"]
    assert batches.files(batch.rows) == ["00000.parquet", "00002.parquet"]


@pytest.mark.parametrize("of", [1, 3, 8])
def test_the_parts_of_ranks_are_the_batch(of, batches):
    """More ranks than shards, too."""
    made = batches()
    parts = [made.of_rank(3, rank, of) for rank in range(of)]
    for name in ("pixels", "tokens", "weights", "rows", "index"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(whole, getattr(made[3], name))
    firsts = np.cumsum([0, *(len(part.rows) for part in parts[:-1])])
    image_of = [part.image_of + first for part, first in zip(parts, firsts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(image_of), made[3].image_of)


def test_all_texts_of_a_row_are_taken_where_the_loss_takes_them(cached):
    texts = {0: ["an a"], 1: ["a b", "a c", "a d"], 2: ["an e", "an f"]}
    parts, _ = cached([row(i, texts=[caption(t) for t in own]) for i, own in texts.items()])
    batch = batches_of(parts, size=3, seed=0, texts="all")[0]
    assert np.array_equal(batch.image_of, np.repeat(range(3), [len(texts[i]) for i in batch.rows]))
    bags = np.split(batch.tokens, batch.starts[1:])
    flat = [text for i in batch.rows for text in texts[i]]
    tokens, starts = token_bags(flat, TINY.buckets, TINY.tokens)
    for bag, own in zip(bags, np.split(tokens, starts[1:-1]), strict=True):
        np.testing.assert_array_equal(bag, own)


def test_a_row_has_the_number_that_its_export_gave_it_or_its_place_in_one_that_gave_none(cached):
    parts, _ = cached([row(0), row(1, image=None)], [], [row(2), row(3)])
    batch = batches_of(parts, size=3, seed=0)[0]
    assert dict(zip(batch.rows.tolist(), batch.index.tolist(), strict=True)) == {0: 0, 1: 2, 2: 3}


def test_stored_vectors_go_along_and_a_row_without_a_finite_one_is_left_out(cached, tmp_path):
    unfit = {2: None, 5: [0.5, float("nan")], 6: [float("inf"), 0.5]}
    rows = [row(i, vector=unfit.get(i, [i, 0.5])) for i in range(7)]
    parts, said = cached(rows[:3], rows[3:], teacher=("vector",))
    assert [one["left_out"]["no_teacher"] for one in said] == [1, 2]
    batch = batches_of(parts, size=4, seed=0)[0]
    assert batch.teacher["vector"].tolist() == [[i, 0.5] for i in batch.index]
    shutil.rmtree(tmp_path / "export")
    with pytest.raises(StageError, match="no column 'other', which the loss asks for"):
        cached([row(9)], teacher=("other",))


def test_a_batch_whose_rows_all_lack_a_vector_has_no_usable_row():
    text = pa.array([[{"text": "a text"}]], TEXTS.dtype)
    none = {"vector": pa.nulls(1, pa.list_(pa.float32())), "repeats": pa.nulls(1, pa.int32())}
    rows = pa.table({"texts": text, **none})
    reading = Reading(data="", folder="", size=8, tokenize=None, teacher=("vector",))
    assert len(usable(rows, reading, counts := Counter())) == 0
    assert counts["no_teacher"] == 1


def test_a_teacher_of_texts_is_refused(cached):
    with pytest.raises(StageError, match="'repeats' holds int32, not vectors"):
        cached([row(0)], teacher=("repeats",))


@pytest.mark.parametrize("size", [1, 24, 100])
def test_any_size_of_batch_works(batches, size):
    assert len(batches(size=size)[2].rows) == size


def _cut(part, start, stop):
    text = part.text_starts[start : stop + 1]
    tokens = part.token_starts[text[0] : text[-1] + 1]
    return replace(
        part,
        at=part.at[start:stop],
        index=part.index[start:stop],
        uids=part.uids[start:stop],
        repeats=part.repeats[start:stop],
        weights=part.weights[start:stop],
        text_starts=text - text[0],
        token_starts=tokens - tokens[0],
        tokens=part.tokens[tokens[0] : tokens[-1]],
    )


def negatives(i: int) -> list | None:
    """Two texts, of every third row none."""
    return [caption(f"no thing {i}"), caption(f"not a thing {i}")] if i % 3 else None


def false_tokens(batch) -> list[list[int]]:
    """Those of each negative, which stand behind all captions."""
    return [part.tolist() for part in np.split(batch.tokens, batch.starts[1:])][len(batch.rows) :]


def test_a_row_has_one_of_its_negatives_beside_a_caption_that_stays_what_it_was(cached):
    rows = [row(i, negatives=negatives(i)) for i in range(12)]
    parts, said = cached(rows[:5], rows[5:], negatives="negatives")
    assert [one["no_negative"] for one in said] == [2, 2]
    ours, plain = batches_of(parts, size=8, seed=0), batches_of(cached(rows)[0], size=8, seed=0)
    drawn = set()
    for n in range(9):
        batch, captions = ours[n], plain[n].tokens
        assert batch.tokens[: len(captions)].tolist() == captions.tolist()
        numbers = batch.rows[batch.negative_of]
        assert numbers.tolist() == [i for i in batch.rows if i % 3]
        for i, tokens in zip(numbers, false_tokens(batch), strict=True):
            texts = [text["text"] for text in negatives(i)]
            bags = [token_bags([text], TINY.buckets, TINY.tokens)[0].tolist() for text in texts]
            drawn.add((i, bags.index(tokens)))
        halves = [ours.of_rank(n, rank, 2) for rank in (0, 1)]
        assert [*false_tokens(halves[0]), *false_tokens(halves[1])] == false_tokens(batch)
    assert len(drawn) == 16  # 8 rows, each text of theirs


def test_negatives_may_be_a_text_a_row(cached):
    rows = [row(i, long_negative=("no red ox", None, "")[i]) for i in range(3)]
    [part], [said] = cached(rows, negatives="long_negative")
    assert (part.negatives.tolist(), said["no_negative"]) == ([1, 0, 0], 2)
    first, last = part.token_starts[1:3]
    bag, _ = token_bags(["no red ox"], TINY.buckets, TINY.tokens)
    assert part.tokens[first:last].tolist() == bag.tolist()


def test_a_column_without_texts_is_no_column_of_negatives(cached):
    with pytest.raises(StageError, match="no column 'negatives'"):
        cached([row(0)], negatives="negatives")
    with pytest.raises(StageError, match="'repeats' holds int32, not texts"):
        cached([row(0)], negatives="repeats")


def ids_of(*concepts: int) -> np.ndarray:
    return np.array(concepts, np.int32)


def test_gains_of_concepts_are_the_known_ones():
    rarity, seen = np.array([1 / 100, 1 / 10, 1.0]), np.array([2, 1, 0])
    rows = (ids_of(0), ids_of(1), ids_of(2), ids_of(0, 2), ids_of())
    assert [gain_of(ids, seen, rarity, 2) for ids in rows] == pytest.approx([0, 0.6, 2, 1, 0])


@pytest.mark.parametrize("count", [1, 12, 60])
def test_rows_are_those_of_the_plain_greedy_choice_of_equal_ones_the_first(count):
    rng = np.random.default_rng(0)
    concepts = [ids_of(*sorted({*rng.zipf(1.5, rng.integers(0, 6)) % 40})) for _ in range(60)]
    rarity, seen, plain = 1 / rng.integers(1, 9, 40), np.zeros(40, np.int64), []
    for _ in range(count):
        left = [place for place in range(60) if place not in plain]
        plain.append(max(left, key=lambda i: gain_of(concepts[i], seen, rarity, 3)))
        seen[concepts[plain[-1]]] += 1
    starts = np.cumsum([0, *map(len, concepts)])
    assert diverse(np.concatenate(concepts), starts, rarity, 3, count) == plain


def test_most_concepts_are_first_and_else_each_has_as_many_rows_as_another(cached):
    """Of 12 rows 8 show concept 0, 2 concept 1, 2 both 2 and 3: two rows each are the target."""
    ids = [[0]] * 8 + [[1]] * 2 + [[2, 3]] * 2
    rows = [row(i, concept_ids=ids[i], concept_list="a") for i in range(12)]
    parts, _ = cached(rows, gain="diversity")
    drawn = {}
    for gain in ("diversity", "frequency"):
        batch = batches_of(parts, size=4, seed=0, gain=gain, super_batch=3)[0]
        drawn[gain] = sorted(ids[i][0] for i in batch.rows)
    assert drawn["diversity"] in ([0, 1, 1, 2], [0, 1, 2, 2])
    assert drawn["frequency"][2:] == [2, 2]


@pytest.mark.parametrize("gain", ["diversity", "frequency"])
def test_a_batch_by_concept_is_of_its_super_batch_whatever_the_ranks_and_shards(cached, gain):
    ids = [[i % 3, 5 + i] if i % 4 else None for i in range(24)]
    rows = [row(i, concept_ids=ids[i], concept_list="a") for i in range(24)]
    parts, _ = cached(rows[:10], rows[10:], gain="diversity")
    way = {"size": 4, "seed": 0, "gain": gain, "super_batch": 3}
    ours = batches_of(parts, **way)
    held, firsts = [ours[n].rows.tolist() for n in range(5)], []
    for n, numbers in enumerate(held):
        there = batches_of(parts, size=12, seed=0)[n].rows
        assert len({*numbers} & {*there}) == 4
        firsts.append(there[:4].tolist())
        assert [*ours.of_rank(n, 0, 2).rows, *ours.of_rank(n, 1, 2).rows] == numbers
    assert held != firsts
    other = batches_of(cached(rows[:3], rows[3:], gain="diversity")[0], **way)
    assert [other[n].rows.tolist() for n in (4, 0)] == [held[4], held[0]]


def test_a_super_batch_lies_within_an_epoch_and_has_no_row_twice(cached):
    rows = [row(i, concept_ids=[i], concept_list="a") for i in range(16)]
    parts, _ = cached(rows, gain="diversity")
    batches = batches_of(parts, size=6, seed=0, gain="frequency", super_batch=2)
    drawn = [batches[n].rows.tolist() for n in range(30)]
    assert all(len({*numbers}) == 6 for numbers in drawn)
    assert {row for numbers in drawn for row in numbers} == {*range(16)}


def bag_of(text) -> list[int]:
    return token_bags([text], TINY.buckets, TINY.tokens)[0].tolist()


def halves(values, views=2) -> list:
    return np.split(values, views)


def test_a_second_view_is_shifted_and_drawn_by_itself_and_the_first_stays_what_it_was(cached):
    rows = [row(i, texts=[caption(f"a thing {i} seen {k}") for k in range(3)]) for i in range(12)]
    parts, _ = cached(rows[:5], rows[5:])
    plain, ours = batches_of(parts)[3], batches_of(parts, image_views=2, text_views=2)[3]
    assert (halves(ours.pixels)[0] == plain.pixels).all()
    assert (halves(ours.pixels)[1] != plain.pixels).any()
    texts = np.split(ours.tokens, ours.starts[1:])
    own = np.split(plain.tokens, plain.starts[1:])
    assert list(map(list, texts[:8])) == list(map(list, own))
    assert list(map(list, texts[8:])) != list(map(list, own))
    bags = [[bag_of(text["text"]) for text in rows[i]["texts"]] for i in [*ours.index] * 2]
    taken = [of.index(text.tolist()) for of, text in zip(bags, texts, strict=True)]
    assert {(b - a) % 3 for a, b in zip(taken[:8], taken[8:], strict=True)} == {
        1,
        2,
    }  # never the same
    parts_of_ranks = [
        batches_of(parts, image_views=2, text_views=2).of_rank(3, r, 2) for r in (0, 1)
    ]
    for view in (0, 1):
        both = np.concatenate([halves(part.pixels)[view] for part in parts_of_ranks])
        assert (both == halves(ours.pixels)[view]).all()


def test_texts_are_edited_in_the_last_view_alone(cached):
    rows = [row(i, negatives=negatives(i)) for i in range(12)]
    way = {"negatives": "negatives", "edits": lambda text, coin: text.replace("thing", "matter")}
    parts, _ = cached(rows, **way)
    for views in (1, 2):
        batch = batches_of(parts, **way, text_views=views)[0]
        texts = list(map(list, np.split(batch.tokens, batch.starts[1:])))
        words = [rows[i]["texts"][0]["text"] for i in batch.rows]
        kinds = [words] * (views - 1) + [[text.replace("thing", "matter") for text in words]]
        bags = [bag_of(text) for kind in kinds for text in kind]
        assert texts[: 8 * views] == bags
        assert len(texts) == 8 * views + len(batch.negative_of)
