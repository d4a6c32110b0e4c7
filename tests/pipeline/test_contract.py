"""`clipmill stages --check`: a good stage of one's own passes, each bad one fails by its law."""

import re

import pytest

from clipmill.pipeline.contract import DECLARED, Declared, check, other_value
from clipmill.pipeline.own_code import VARIABLE

ROW = '''
"""How long a caption is."""
from dataclasses import dataclass
import random
import pyarrow as pa
import pyarrow.compute as pc
from clipmill.metadata.schema import KEEP, REASON, TEXT, Column
from clipmill.pipeline.stage import OneUp, RowFunction, RowStage, Worker

LONG = Column("long", pa.int64(), "0 up", "Characters of the caption.")

@dataclass(frozen=True, kw_only=True)
class Long(RowStage):
    """Characters of a caption, 0 up; null without one.

    Error: none.
    """

    times: OneUp = 2  # how often each character counts

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LONG,)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        return self.lengths

    def lengths(self, batch: pa.Table) -> pa.Table:
        text = batch[TEXT.name]
        long = pc.multiply(pc.utf8_length(text), self.times).cast(pa.int64())
        reason = pc.if_else(text.is_null(), "no_text", None).cast(pa.string())
        return pa.table({LONG.name: long, REASON.name: reason.dictionary_encode()})
'''
DATASET = '''
"""How often a caption stands in the pool."""
from dataclasses import dataclass
import pyarrow as pa
import pyarrow.compute as pc
from clipmill.metadata.schema import IDENTITY, KEEP, REASON, REASON_TYPE, TEXT, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import DatasetStage

SAME = Column("same", pa.int64(), "1 up", "Rows with this caption.")
CALLS = []

@dataclass(frozen=True, kw_only=True)
class Same(DatasetStage):
    """Rows of the pool with the very same caption, 1 up; null without a caption.

    Error: none.
    """

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (SAME,)
    reasons = ("no_text",)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        by_text = ctx.shuffle(inputs.rows, key=TEXT.name)
        ctx.restore(ctx.map_shards(counted, by_text))

def counted(rows: pa.Table) -> pa.Table:
    CALLS.append(len(rows))
    captions = rows[TEXT.name].to_pylist()
    same = [None if one is None else captions.count(one) for one in captions]
    reason = pa.array([None if one else "no_text" for one in same], pa.string())
    out = rows.select(IDENTITY).append_column(SAME.name, pa.array(same, pa.int64()))
    return out.append_column(REASON.name, reason.cast(REASON_TYPE))
'''
GIVEN = "return pa.table({LONG.name: long"
SHUFFLED = "by_text = ctx.shuffle(inputs.rows, key=TEXT.name)"
BAD = {  # what is put in the place of what: the law that it breaks, and what is found
    "a row less": (
        (GIVEN, "long, reason = long[1:], reason[1:]\n        " + GIVEN),
        "rows and types", "79 rows came back for 80",
    ),
    "another type": (
        (".cast(pa.int64())\n", ".cast(pa.int32())\n"), "rows and types", "column 'long' is int32",
    ),
    "an undeclared reason": (
        ('reasons = ("no_text",)', 'reasons = ("no_words",)'), "rows and types", "reason 'no_text'",
    ),
    "a made-up value": (
        (GIVEN, "long = long.fill_null(0)\n        " + GIVEN), "nulls", "'long' has a value",
    ),
    "no reason": (('"no_text", None', "None, None"), "a reason for each null", "row 4 has a null"),
    "the batch's size": (
        (GIVEN, "long = pc.add(long, len(batch))\n        " + GIVEN), "batches", "long of row 20",
    ),
    "the row before": (
        (GIVEN, "long = pc.fill_null_forward(long) if len(long) else long\n        " + GIVEN),
        "order", "long of row",
    ),
    "chance": (
        (GIVEN, "long = pc.add(long, random.randrange(10**9))\n        " + GIVEN),
        "the same again", "long of row 0",
    ),
    "one chunk": (
        (GIVEN, "assert batch[TEXT.name].num_chunks < 2, 'chunks'\n        " + GIVEN),
        "chunks", "AssertionError: chunks",
    ),
    "failure": ((GIVEN, "text.no_such()\n        " + GIVEN), "rows and types", "AttributeError"),
    "silent setting": (("  # how often each character counts", ""), "settings say", "times"),
    "no error": (("    Error: none.\n", "    It is so.\n"), "docstring", "no source and no error"),
    "a blind select": (
        ("LONG = ", "SHORT = ", "LONG", "KEEP", "cast(pa.int64())", "cast(pa.bool_())"),
        "sees earlier selects", "it writes `keep` and reads none",
    ),
    "shards": (
        (SHUFFLED, "by_text = inputs.rows"), "shards and their order", "same of row",
    ),
    "a memory": (
        ("captions.count(one)", "captions.count(one) + 100 * len(CALLS)"), "a kill", "same of row",
    ),
}  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the file of a stage of one's own; what it is called by."""

    def written(text: str, name: str = "mine") -> str:
        (tmp_path / "stages" / "score").mkdir(parents=True, exist_ok=True)
        (tmp_path / "stages" / "score" / f"{name}.py").write_text(text)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "stages"))
        return f"score.{name}"

    return written


@pytest.mark.parametrize("text", [ROW, DATASET], ids=["row", "dataset"])
def test_a_good_stage_passes_every_check(text, written, clipmill):
    said = clipmill("stages", "--check", written(text))
    assert (said.code, said.err) == (0, "")
    names = [line.partition(" ")[2].strip() for line in said.out.splitlines()]
    assert all(line.startswith("ok ") for line in said.out.splitlines())
    assert {"dataclass", "columns", "a kill", "shards and their order"} <= {*names}
    assert ("batches" in names) == (text == ROW)


@pytest.mark.chaos  # seconds
@pytest.mark.parametrize("case", BAD)
def test_a_bad_stage_fails_by_the_law_that_it_breaks(case, written):
    changes, law, found = BAD[case]
    text = DATASET if case in ("shards", "a memory") else ROW
    for before, after in zip(changes[::2], changes[1::2], strict=True):
        assert before in text
        text = text.replace(before, after)
    bad = [one for one in check(written(text)) if one.verdict == "bad"]
    (told,) = [one for one in bad if one.name.startswith(law)]
    assert found in told.found
    assert "mine.py" in told.where
    assert told.do


def test_what_fails_is_told_with_where_and_what_to_do(written, clipmill):
    uses = written(ROW.replace(GIVEN, "text.no_such()\n        " + GIVEN))
    said = clipmill("stages", "--check", uses)
    assert said.code == 1
    line = ROW[: ROW.index(GIVEN)].count("\n") + 1
    told = rf"BAD   rows and types: AttributeError: .*\n      where: .*mine.py:{line}\n"
    assert re.search(told, said.out)
    assert "      do:    mend it there" in said.out
    told = clipmill("stages", "--check", uses, "--json")
    assert told.code == 1
    assert {"name", "verdict", "found", "where", "do"} == told.json[0].keys()


def test_what_cannot_be_read_or_named_is_wrong_and_is_not_checked(written, clipmill):
    said = clipmill("stages", "--check", written("def ("))
    assert (said.code, "cannot be imported" in said.err) == (2, True)
    said = clipmill("stages", "--check", "score.mime")
    assert (said.code, "did you mean 'score.mine'" in said.err) == (2, True)
    said = clipmill("stages", "--check")
    assert (said.code, "--check wants a stage" in said.err) == (2, True)


def test_a_file_that_imports_what_is_heavy_plans_slowly():
    (law,) = [law for law in DECLARED if law.name == "plans fast"]
    assert law.wrong(Declared("", object, None, ["torch"])) == "its file imports torch"
    assert law.wrong(Declared("", object, None, [])) is None


def test_of_what_made_up_rows_cannot_feed_only_declarations_are_checked(clipmill):
    said = clipmill("stages", "--check", "train.clip")
    assert said.code == 0
    assert said.out.splitlines()[-1].startswith("note  work: it takes data")


NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "other", "is_same"),
    [
        ([NAN, 0.1], [NAN, 0.1000001], True),
        ([None, [1.0]], [None, [1.0000001]], True),
        ([], [1.0], False),
        ([1.0], [1.0, 1.0], False),
        ([1.0, 2.0, 3.0], [1.0, 2.0], False),
        (["a"], ["b"], False),
        (None, NAN, False),
        (0.5, 0.6, False),
    ],
)
def test_close_lists_have_one_length_and_the_same_nulls(value, other, is_same):
    found = other_value({"score": value}, {"score": other}, "row 0", is_close=True)
    assert (found is None) == is_same
