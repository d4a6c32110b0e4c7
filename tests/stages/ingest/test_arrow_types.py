"""Arrow types from text: what Arrow prints is read back, what is none is refused."""

import pyarrow as pa
import pytest

from clipmill.stages.ingest._columns import comes_back, type_of

FIELDS = [
    pa.field("a b", pa.int8()),
    pa.field("c", pa.timestamp("us", "Europe/Berlin"), nullable=False),
    pa.field("d", pa.list_(pa.struct([("e", pa.string())]))),
]


@pytest.mark.parametrize(
    "dtype",
    [
        *(pa.null(), pa.bool_(), pa.uint8(), pa.float16(), pa.float64(), pa.string()),
        *(pa.large_string(), pa.string_view(), pa.binary(), pa.binary(5), pa.binary_view()),
        *(pa.date32(), pa.time64("ns"), pa.duration("us"), pa.timestamp("s")),
        *(pa.timestamp("ns", "UTC"), pa.decimal32(3, 1), pa.decimal128(9, 2), pa.decimal256(9, -2)),
        *(pa.list_(pa.string()), pa.list_(pa.float16(), 512), pa.large_list(pa.float32())),
        pa.list_(pa.field("element", pa.list_(pa.int8()), nullable=False)),
        *(pa.list_view(pa.int8()), pa.struct(FIELDS), pa.map_(pa.string(), pa.struct(FIELDS))),
        *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.decimal128(4, 2))),
        pa.list_(pa.dictionary(pa.int32(), pa.string(), ordered=True)),
    ],
    ids=str,
)
def test_a_type_is_read_as_arrow_prints_it(dtype):
    assert type_of(str(dtype)) == dtype


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("float32", pa.float32()),
        (" list<string> ", pa.list_(pa.string())),
        ("fixed_size_list<float>[3]", pa.list_(pa.float32(), 3)),
        ("list<struct<a: int8, b: string>>", pa.list_(pa.struct(dict(a=pa.int8(), b="string")))),
        ("binary[16]", pa.binary(16)),
        ("decimal128(5,2)", pa.decimal128(5, 2)),
    ],
)
def test_a_short_form_is_read_too(text, dtype):
    assert type_of(text) == dtype


@pytest.mark.parametrize(
    "text",
    [
        *("", "words", "list<", "list<>", "list<words>", "list<int8, int8>", "list<int8>[4]"),
        *("fixed_size_list<float>", "struct<>", "struct<a>", "map<string>", "timestamp[h]"),
        *("decimal128(99, 2)", "decimal512(9, 2)", "dictionary<values=string>", "list<a: b: c>"),
    ],
)
def test_what_is_no_type_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        type_of(text)


@pytest.mark.parametrize(
    ("dtype", "back"),
    [
        (pa.list_(pa.float16(), 3), pa.list_(pa.float16(), 3)),
        (pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int32())),
        (pa.timestamp("s"), pa.timestamp("ms")),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int32()),
        (pa.month_day_nano_interval(), None),
    ],
)
def test_the_type_that_a_parquet_file_gives_back_is_known(dtype, back):
    assert comes_back(dtype) == back
