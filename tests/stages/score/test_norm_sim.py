"""NormSim: both norms against float64, and targets that do not fit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.score.norm_sim import NormSim
from tests.stages.select.targets import MODEL, pool, write_targets

ROWS = 600


@pytest.fixture
def scored(memory_context, memory_shards):
    """What the stage stores of these tables."""

    def run(stage: NormSim, *tables: pa.Table) -> pa.Table:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        return pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)

    return run


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    row = rng.normal(1, size=(ROWS, 16)) * rng.uniform(0.1, 9, (ROWS, 1))  # as pictures: none far
    return row.astype(np.float32), rng.normal(1, size=(90, 16)).astype(np.float32)


@pytest.mark.parametrize(("p", "norm"), [("inf", np.inf), (2, 2)])
def test_scores_and_the_rows_kept_are_those_of_the_released_rule(p, norm, drawn, scored, tmp_path):
    row, target = (part.astype(np.float64) for part in drawn)
    row, target = (part / np.linalg.norm(part, axis=1)[:, None] for part in (row, target))
    similar = row @ target.T
    expected = np.linalg.norm(similar, norm, axis=1)
    for name, part in (("one", drawn[1][:30]), ("two", drawn[1][30:])):
        write_targets(tmp_path / f"{name}.parquet", part)
    given = pool(drawn[0])
    out = scored(NormSim(targets=str(tmp_path), p=p), given.slice(0, 50), given.slice(50))
    found = out["norm_sim"].to_numpy()
    assert np.abs(found / expected - 1)[np.abs(expected) > 0.1].max() < 1e-6
    assert np.abs(found - expected).max() < 1e-6
    best = ROWS // 5
    assert {*np.argsort(-found)[:best]} == {*np.argsort(-expected)[:best]}


def test_a_target_itself_has_one_and_undefined_rows_none(scored, tmp_path):
    place = write_targets(tmp_path / "it.parquet", [[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    row = np.array([[6, 8], [-3, -4], [1, 0], [0, 0], [np.nan, 1], [1, 1]], np.float32)
    given = pool(row, keep=[True] * 5 + [False])
    out = scored(NormSim(targets=place), given)["norm_sim"].to_pylist()
    assert out == [pytest.approx(value, abs=1e-7) for value in (1, -0.8, 0.6)] + [None] * 3
    out = scored(NormSim(targets=place, p=2), given)
    assert out["norm_sim"].to_pylist()[2] == pytest.approx(0.6)
    reasons = ["zero_or_nan_embedding", "no_embedding", "dropped_before"]
    assert out["reason"].to_pylist() == [None] * 3 + reasons


def test_a_row_at_right_angles_to_all_targets_has_zero(scored, tmp_path):
    row, target = np.random.default_rng(0).normal(size=(2, 200, 8))
    target[:, 3:] = row[:, :3] = 0
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    place = write_targets(tmp_path / "it.parquet", target @ turned)
    out = scored(NormSim(targets=place, p=2), pool((row @ turned).astype(np.float32)))
    assert out["norm_sim"].to_numpy() == pytest.approx(0, abs=1e-5)


def test_targets_that_do_not_fit_are_refused(drawn, scored, tmp_path):
    (tmp_path / "both").mkdir()
    place = write_targets(tmp_path / "both" / "narrow.parquet", drawn[1][:, :5])
    with pytest.raises(StageError, match="embeddings 16 wide, and targets 5 wide"):
        scored(NormSim(targets=place), pool(drawn[0]))
    write_targets(tmp_path / "both" / "wide.parquet", drawn[1])
    with pytest.raises(StageError, match="targets 5 and 16 wide"):
        scored(NormSim(targets=str(tmp_path / "both")), pool(drawn[0]))
    write_targets(tmp_path / "bare.parquet", drawn[1], None)
    with pytest.raises(StageError, match="does not say which model"):
        scored(NormSim(targets=str(tmp_path / "bare.parquet")), pool(drawn[0]))
    with pytest.raises(StageError, match="no column 'dino' of vectors"):
        scored(NormSim(targets=place, column="dino"), pool(drawn[0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="no Parquet in"):
        NormSim(targets=str(tmp_path / "empty")).look()
    zero = write_targets(tmp_path / "empty" / "zero.parquet", np.zeros((2, 16)))
    with pytest.raises(StageError, match="no target"):
        scored(NormSim(targets=zero), pool(drawn[0]))
    for apart in (1, 4096):  # in one batch that is read, and in two
        ragged = pa.array([[1.0] * 16] * apart + [[1.0]], pa.list_(pa.float32()))
        table = pa.table({"image_embedding": ragged})
        table = table.replace_schema_metadata({"clipmill.model": MODEL})
        pq.write_table(table, tmp_path / "ragged.parquet")
        with pytest.raises(StageError, match=r"several widths\n.*ragged\.parquet"):
            scored(NormSim(targets=str(tmp_path / "ragged.parquet")), pool(drawn[0]))
