"""Which columns of a pool a recipe needs: those that its stages read, whatever ran before."""

import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """
stages:
  pool: {uses: ingest.datacomp, path: %s, scores: true}
  some: {uses: select.where, from: pool, where: %s > 0.2}
"""
MORE = "  long: {uses: annotate.caption, from: some}\n"
L14, B32 = "clip_l14_similarity_score", "clip_b32_similarity_score"


def test_a_column_is_needed_once_a_stage_reads_it(clipmill, tmp_path):
    rows = {"uid": [f"{n:032x}" for n in range(3)], "url": ["http://a/"] * 3, "text": ["b"] * 3}
    (tmp_path / "pool").mkdir()
    scores = pa.array([0.1, 0.3, None], pa.float32())
    pq.write_table(pa.table({**rows, L14: scores}), tmp_path / "pool" / "0.parquet")

    def run(column: str, *more: str):
        (tmp_path / "it.yaml").write_text(RECIPE % (tmp_path / "pool", column))
        where = ("--out", tmp_path / "run", "--workers", 0)
        return clipmill("run", tmp_path / "it.yaml", *where, *more)

    assert run(L14).code == 0
    assert "1  33.3%  kept by 'some'" in clipmill("funnel", "--run", tmp_path / "run").out
    assert run(B32, "--until", "pool").code == 0
    said = run(B32)
    assert said.code == 2, "before anything runs, though the pool is done"
    assert f"no column '{B32}', and a stage reads it" in said.out + said.err
    assert f"{tmp_path}/pool/0.parquet" in said.out + said.err
    done = ("plan", "--out", tmp_path / "run")
    for verb in (("plan",), done, ("run", "--out", tmp_path / "new")):
        said = clipmill(*verb, tmp_path / "it.yaml")
        assert (said.code, f"no column '{B32}', and a stage" in said.err) == (2, True), verb
    (tmp_path / "pool").rename(tmp_path / "gone")
    (tmp_path / "it.yaml").write_text(RECIPE % (tmp_path / "pool", L14) + MORE)
    said = clipmill("plan", tmp_path / "it.yaml", "--out", tmp_path / "run")
    assert said.code == 0, "a pool that is done may go"
