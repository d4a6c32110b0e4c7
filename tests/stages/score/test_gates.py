"""Alip and Learnability: known gates, known losses, and rows that have none."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.score.alip import Alip
from clipmill.stages.score.learnability import Learnability, learnability

COSINES = {"text_caption": "s", "image_text": "r", "image_caption": "c"}


@pytest.fixture
def gates(memory_context, memory_shards):
    """What the stage stores of these tables."""

    def run(*tables: pa.Table) -> pa.Table:
        ctx = memory_context()
        Alip(**COSINES).run(Inputs(rows=memory_shards(*tables)), ctx)
        return pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)

    return run


def table(**columns) -> pa.Table:
    rows = len(columns["s"])
    uids = [(1 + row).to_bytes(16, "big") for row in range(rows)]
    return pa.table({"uid": pa.array(uids, pa.binary(16)), **columns})


def test_gates_are_the_published_ones_and_pairs_of_a_good_sample_keep_theirs(gates):
    # Means .3, .2 and .4; a sample .1 below its mean has gate e^-.2.
    given = table(s=[0.2, 0.3, 0.4, None], r=[0.1, 0.2, 0.3, 0.9], c=[0.5, 0.3, 0.4, 0.9])
    out = gates(given)
    assert out["sample_gate"].to_pylist() == [pytest.approx(0.818731, abs=1e-6), 1, 1, None]
    assert out["text_gate"].to_pylist() == [pytest.approx(0.818731, abs=1e-6), 1, 1, None]
    assert out["caption_gate"].to_pylist() == [pytest.approx(1.221403, abs=1e-6), 1, 1, None]
    assert out["reason"].to_pylist() == [None] * 3 + ["undefined"]
    columns = ["sample_gate", "text_gate", "caption_gate"]
    turned = gates(given.slice(1), given.slice(0, 1)).sort_by("uid")
    assert turned.select(columns).equals(out.select(columns))
    assert gates(given.slice(3))["sample_gate"].null_count == 1


def test_learnability_is_the_learners_loss_less_the_references():
    rows = 8
    same = -0.01 * np.log(rows)  # of equal pairs: their loss is ln 8, whatever the model
    batch = pa.table({"a": [same, same, None, 0.0], "b": [same, 0.0, 0.0, np.nan]})
    out = learnability(batch, settings=Learnability(learner="a", reference="b"))
    expected = [pytest.approx(value, abs=1e-6) for value in (0, np.log(rows))]
    assert out["learnability"].to_pylist() == [*expected, None, None]
    assert out["reason"].to_pylist() == [None, None, "undefined", "undefined"]
    warm = Learnability(learner="a", reference="b", learner_tau=0.02)
    assert learnability(batch, settings=warm)["learnability"][1].as_py() == pytest.approx(
        np.log(rows) / 2
    )


def test_columns_that_hold_no_scores_are_refused():
    with pytest.raises(StageError, match="column 'r' holds string"):
        Alip(**COSINES).check({"s": pa.float32(), "r": pa.string(), "c": pa.float32()})
    with pytest.raises(StageError, match="column 'b' holds bool"):
        Learnability(learner="a", reference="b").check({"a": pa.float32(), "b": pa.bool_()})
