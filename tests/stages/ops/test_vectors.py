"""Vectors: Arrow's layouts, and lengths."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, row_dot, unit_rows

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
    assert from_matrix(EXPECTED, np.array([1, 1, 0, 0], bool)).to_pylist()[:2] == [None, None]


def test_unit_rows_have_length_one_and_nan_where_there_is_no_direction():
    row_ND = np.array(
        [[3, 4], [3 * 2.0**100, 4 * 2.0**100], [0, 0], [np.nan, 1], [np.inf, 1]], np.float32
    )
    unit = np.array([[0.6, 0.8], [0.6, 0.8]] + 3 * [[np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(unit_rows(row_ND), unit)


def test_row_dot_is_summed_in_float64():
    a_ND = np.array([[1e8, 1, -1e8]], np.float32)
    assert row_dot(a_ND, np.ones((1, 3), np.float32)).tolist() == [1.0]
