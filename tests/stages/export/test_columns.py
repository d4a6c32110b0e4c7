"""Values as hex digits, against `bytes.hex`, whatever the chunks."""

import pyarrow as pa
import pytest

from clipmill.stages.export._columns import as_hex


@pytest.mark.parametrize("values", [[b"ab", None, b"\x00\xff"], [], [None, None], [b"zz"]])
def test_ids_are_their_hex_digits_also_of_a_part_and_where_some_are_missing(values):
    whole = pa.array(values, pa.binary(2))
    part = pa.array([b"xy", *values, None], pa.binary(2)).slice(1, len(values))
    for ids in ([whole], [part], [whole, part], []):
        ids = pa.chunked_array(ids, pa.binary(2))
        digits = as_hex(ids)
        digits.validate(full=True)
        assert digits.to_pylist() == [value and value.hex() for value in ids.to_pylist()]
