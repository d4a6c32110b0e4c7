"""What a stage's answer must be to be stored: its columns, their types, its reasons."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from clipmill.metadata.schema import REASON_TYPE, Column
from clipmill.pipeline.engine.declared import as_declared
from clipmill.pipeline.errors import StageError

SCORE = Column("score", pa.float32(), "0 to 1", "How good.")
SCORES = pa.array([1, 0], pa.float32())
PLANNED = SimpleNamespace(
    name="it", uses="toy.it", stage=SimpleNamespace(writes=(SCORE,), reasons=("dark", "torn"))
)


def answer(**columns):
    uid = pa.array([b"a" * 16, b"b" * 16], pa.binary(16))
    return pa.table({"uid": uid, "score": SCORES, "reason": pa.nulls(2, REASON_TYPE), **columns})


def test_an_answer_is_stored_in_the_declared_columns_and_order():
    stored = as_declared(PLANNED, answer(extra=[1, 2]).select([3, 2, 1, 0]), 7)
    assert stored.column_names == ["uid", "score", "reason"]
    assert stored["score"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    "reason",
    [
        pa.array(["dark", None]),
        pa.nulls(2),
        pa.array(["dark", None]).dictionary_encode(),
        pa.array(["dark", None]).cast(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=["strings", "nulls", "dictionary", "small dictionary"],
)
def test_reasons_may_be_strings(reason):
    stored = as_declared(PLANNED, answer(reason=reason), 7)["reason"]
    assert stored.type == REASON_TYPE
    assert stored.to_pylist() == reason.to_pylist()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (answer().drop_columns(["score"]), "no column 'score' came back"),
        (answer().drop_columns(["uid"]), "no column 'uid' came back"),
        (answer(score=pa.array([1, 0], pa.float64())), "'score' came back as double"),
        (answer(reason=pa.array([1, 0])), "'reason' came back as int64"),
        (answer(reason=pa.array(["dim", None])), "reason 'dim' is not declared"),
    ],
    ids=["no column", "no uid", "another type", "reasons are no strings", "another reason"],
)
def test_an_answer_of_another_shape_is_refused_by_column_and_type(table, said):
    with pytest.raises(StageError) as refused:
        as_declared(PLANNED, table, 7)
    found, where, do = refused.value.args
    assert said in found
    assert where == "stage 'it' (toy.it), shard 7"
    if "double" in said:
        assert do == "declare or return float"


def test_reasons_may_come_in_chunks_of_several_dictionaries():
    chunks = [pa.array([code]).dictionary_encode() for code in ("torn", "dark")]
    stored = as_declared(PLANNED, answer(reason=pa.chunked_array(chunks)), 7)
    assert stored["reason"].to_pylist() == ["torn", "dark"]


def test_a_reason_that_no_row_has_needs_no_declaration():
    reason = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int32()), ["dark", "unused"])
    assert as_declared(PLANNED, answer(reason=reason), 7)["reason"].to_pylist() == ["dark", None]
