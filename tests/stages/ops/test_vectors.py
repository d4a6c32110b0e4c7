"""Vectors: Arrow's layouts, lengths, and a nearest centre that batching can't change."""

import numpy as np
import pyarrow as pa
import pytest

from stages.ops.vectors import as_matrix, from_matrix, nearest, row_dot, unit_rows

PAIR = pa.list_(pa.float32(), 2)
ROWS = [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]]
EXPECTED = np.array([[1, 2], [np.nan, np.nan], [3, 4], [5, 6]], np.float32)


@pytest.mark.parametrize("dtype", [PAIR, pa.list_(pa.float32()), pa.list_(pa.float16(), 2)])
def test_a_null_vector_is_a_row_of_nan_in_every_list_type(dtype):
    np.testing.assert_array_equal(as_matrix(pa.array(ROWS, dtype)), EXPECTED)


@pytest.mark.parametrize("dtype", [PAIR, pa.list_(pa.float32())])
def test_slices_and_chunks_give_the_rows_they_show(dtype):
    whole = pa.array(ROWS, dtype)
    chunked = pa.chunked_array([whole[2:], whole[:0], whole[:2]])
    np.testing.assert_array_equal(as_matrix(whole[1:3]), EXPECTED[1:3])
    np.testing.assert_array_equal(as_matrix(chunked), EXPECTED[[2, 3, 0, 1]])
    np.testing.assert_array_equal(as_matrix(chunked[1:3]), EXPECTED[[3, 0]])


def test_vectors_without_nulls_are_not_copied():
    column = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], PAIR)
    address = column.values.buffers()[1].address
    assert as_matrix(column[1:]).__array_interface__["data"][0] == address + 8


def test_an_empty_column_keeps_its_width():
    assert as_matrix(pa.chunked_array([], PAIR)).shape == (0, 2)


def test_a_null_inside_a_vector_is_nan():
    column = pa.array([[1.0, None]], PAIR)
    np.testing.assert_array_equal(as_matrix(column), np.array([[1, np.nan]], np.float32))


def test_a_list_column_without_a_vector_has_no_width():
    assert as_matrix(pa.array([None, None], pa.list_(pa.float32()))).shape == (2, 0)


def test_vectors_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="2 widths"):
        as_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))


def test_from_matrix_undoes_as_matrix():
    column = from_matrix(EXPECTED)
    assert column.type == PAIR
    assert column.to_pylist() == ROWS
    assert from_matrix(EXPECTED, np.array([1, 1, 0, 0], bool)).to_pylist()[:2] == [
        None,
        None,
    ]


def test_unit_rows_have_length_one_and_nan_where_there_is_no_direction():
    row_ND = np.array(
        [[3, 4], [3 * 2.0**100, 4 * 2.0**100], [0, 0], [np.nan, 1], [np.inf, 1]],
        np.float32,
    )
    unit = np.array([[0.6, 0.8], [0.6, 0.8]] + 3 * [[np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(unit_rows(row_ND), unit)


def random_units(seed: int, *shape: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal(shape))


def test_nearest_equals_the_float64_argmax_on_near_ties_too():
    centre_KD = random_units(0, 40, 64)
    middle_D = centre_KD[3].astype(np.float64) + centre_KD[7]
    unit_ND = np.concatenate(
        [
            random_units(1, 5_000, 64),
            # On the border of two cells: float32 can't say which is nearer.
            unit_rows(middle_D + 1e-7 * np.random.default_rng(2).standard_normal((2_000, 64))),
        ]
    )
    score_NK = np.array([row_dot64(unit_ND, centre_D) for centre_D in centre_KD]).T
    index_N, dot_N = nearest(unit_ND, centre_KD)
    np.testing.assert_array_equal(index_N, score_NK.argmax(axis=1))
    np.testing.assert_array_equal(dot_N, score_NK.max(axis=1).astype(np.float32))
    assert np.unique(index_N[5_000:]).tolist() == [3, 7]
    in_float32_N = (unit_ND @ centre_KD.T).argmax(axis=1)
    assert (in_float32_N != index_N).any(), "the border rows test nothing"


def row_dot64(unit_ND, centre_D):
    return np.vecdot(unit_ND.astype(np.float64), centre_D.astype(np.float64))


def test_nearest_is_the_same_however_rows_are_batched():
    centre_KD, unit_ND = random_units(3, 300, 32), random_units(4, 1_000, 32)
    whole = nearest(unit_ND, centre_KD)
    parts = [nearest(part, centre_KD) for part in np.array_split(unit_ND, 171)]
    for at_once, in_parts in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(at_once, np.concatenate(in_parts))


def test_equal_centres_give_the_smaller_index():
    centre_KD = np.repeat(random_units(5, 2, 16), 20_000, axis=0)  # more pairs than one part holds
    assert set(nearest(random_units(6, 50, 16), centre_KD)[0].tolist()) == {0, 20_000}


def test_no_rows_have_no_nearest():
    index_N, dot_N = nearest(np.empty((0, 4), np.float32), random_units(0, 3, 4))
    assert (index_N.dtype, dot_N.dtype, len(index_N)) == (np.int32, np.float32, 0)


def test_row_dot_is_summed_in_float64():
    a_ND = np.array([[1e8, 1, -1e8]], np.float32)
    assert row_dot(a_ND, np.ones((1, 3), np.float32)).tolist() == [1.0]
