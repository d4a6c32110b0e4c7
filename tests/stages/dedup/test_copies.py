"""The nearest of some samples: equal to comparing all pairs, and of equally near ones the first."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.dedup import _copies as copies
from clipmill.stages.dedup._copies import Captions, Codes, Directions, pieces_of
from clipmill.stages.dedup._plain import plain

WORDS = ["red", "blue", "cat", "dog", "sun", "été", "猫", "the", "a"]


def column(values, dtype) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, dtype)])


def found(samples, rows: pa.ChunkedArray):
    """How near each row is and to which sample; None where it cannot be compared."""
    defined_N, values = samples.values(rows)
    near = iter(np.stack(samples.nearest(values), axis=1).tolist())
    every = [next(near) if defined else None for defined in defined_N]
    assert next(near, None) is None
    return every


def test_hamming_distances_are_those_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(100):
        monkeypatch.setattr(copies, "COMPARED", int(rng.integers(1, 60)))
        codes = rng.integers(0, 2 ** int(rng.choice([3, 64])), (2, 30), dtype=np.uint64)
        samples = codes[0, : rng.integers(1, 30)].tolist()
        rows = [None if rng.random() < 0.1 else code for code in codes[1].tolist()]
        got = found(Codes(column(samples, pa.uint64())), column(rows, pa.uint64()))
        for row, answer in zip(rows, got, strict=True):
            if row is None:
                assert answer is None
            else:
                bits = [(row ^ sample).bit_count() for sample in samples]
                assert answer == [min(bits), bits.index(min(bits))]


def test_cosines_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    vector = pa.list_(pa.float32(), 4)
    for _ in range(100):
        sample_MD = rng.standard_normal((int(rng.integers(1, 9)), 4)).astype(np.float32)
        row_ND = sample_MD[rng.integers(0, len(sample_MD), 20)]
        row_ND = (row_ND * 3 + rng.choice([0, 1]) * rng.standard_normal((20, 4))).astype(np.float32)
        got = found(Directions(column(list(sample_MD), vector), "it"), column(list(row_ND), vector))
        a_ND, b_MD = row_ND.astype(float), sample_MD.astype(float)
        length_NM = np.sqrt(np.vecdot(a_ND, a_ND)[:, None] * np.vecdot(b_MD, b_MD))
        cosine_NM = a_ND @ b_MD.T / length_NM
        np.testing.assert_allclose([near for near, _ in got], cosine_NM.max(axis=1), atol=1e-6)
        which_N = np.array([int(which) for _, which in got])
        at_best_N = np.take_along_axis(cosine_NM, which_N[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(at_best_N, cosine_NM.max(axis=1), atol=1e-6)


def test_rows_without_a_direction_are_left_out():
    vector = pa.list_(pa.float32(), 2)
    rows = column([None, [0, 0], [float("nan"), 1], [0, 2], None], vector)
    got = found(Directions(column([[1, 0], [0, 1]], vector), "it"), rows)
    assert got == [None, None, None, [1, 1], None]


def test_samples_of_another_width_than_the_rows_are_refused_where_there_is_such_a_row():
    vector = pa.list_(pa.float32())
    samples = Directions(column([[1, 0]], vector), "task 'a'")
    assert found(samples, column([None, None], vector)) == [None, None]
    with pytest.raises(StageError, match="2 wide, and the pool's are 3 wide") as error:
        found(samples, column([[1, 0, 0]], vector))
    assert error.value.args[1] == "task 'a'"


def units(text: str | None, unit: str, size: int) -> set:
    every = " ".join((text or "").lower().split())
    every = every.split() if unit == "word" else every
    return {tuple(every[i : i + size]) for i in range(len(every) - size + 1)}


@pytest.mark.parametrize("unit", ["word", "character"])
def test_shares_are_those_of_all_pairs_of_sets(unit, monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(100):
        monkeypatch.setattr(copies, "ROWS", int(rng.integers(1, 30)))
        size = int(rng.integers(1, 4))
        drawn = [" ".join(rng.choice(WORDS, rng.integers(0, 7))) for _ in range(40)]
        drawn = [rng.choice([None, t.upper(), t], p=[0.1, 0.2, 0.7]) for t in drawn]
        samples, rows = [text or "" for text in drawn[:15]], drawn[15:]
        got = found(Captions(column(samples, pa.string()), unit, size), column(rows, pa.string()))
        wanted = [units(text, unit, size) for text in samples]
        for text, answer in zip(rows, got, strict=True):
            has = units(text, unit, size)
            shares = [len(has & want) / len(want) if want else 0 for want in wanted]
            best = max(shares)
            want = [pytest.approx(best), shares.index(best) if best else -1]
            assert answer == (want if (text or "").strip() else None)


def test_a_short_text_has_no_pieces_and_does_not_take_those_of_others():
    text = plain(pa.array(["a b", "a b c", None, "b", "b c d e"]))
    _, end_N = pieces_of(text, "word", 3)
    assert np.diff(end_N, prepend=0).tolist() == [0, 1, 0, 0, 2]


def test_samples_without_pieces_are_nobodys():
    samples = Captions(column(["cat", "dog"], pa.string()), "word", 5)
    rows = column(["cat", "a cat and a dog and a sun"], pa.string())
    assert found(samples, rows) == [[0, -1], [0, -1]]
