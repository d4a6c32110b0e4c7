"""A list of uids through the commands: what was exported is selected, and asked about."""

import numpy as np
import pyarrow.parquet as pq
import pytest

RECIPE = """
stages:
  pool:   {uses: ingest.datacomp, path: %s/metadata}
  some:   {uses: select.where, from: pool, where: "uid IN ('%s', '%s', '%s')"}
  uids:   {uses: export.uid_list, from: some}
"""
AGAIN = """
stages:
  pool:   {uses: ingest.datacomp, path: %s/metadata}
  listed: {uses: select.uid_list, from: pool, path: %s}
  uids:   {uses: export.uid_list, from: listed}
"""


@pytest.fixture
def uids(generated) -> list[str]:
    return sorted(pq.read_table(generated / "metadata", columns=["uid"])["uid"].to_pylist())


def exported(folder):
    (path,) = folder.glob("stages/uids-*/out/uids.npy")
    return path


def test_a_selection_by_uid_leaves_and_comes_back_as_the_same_list(
    clipmill, generated, uids, tmp_path
):
    (tmp_path / "it.yaml").write_text(RECIPE % (generated, uids[0], uids[7], uids[5]))
    assert clipmill("run", tmp_path / "it.yaml", "--out", tmp_path / "a", "--workers", 0).code == 0
    path = exported(tmp_path / "a")
    found = [f"{high:016x}{low:016x}" for high, low in np.load(path).tolist()]
    assert found == [uids[0], uids[5], uids[7]]
    (tmp_path / "again.yaml").write_text(AGAIN % (generated, path))
    run = ("--out", tmp_path / "b", "--workers", 0)
    assert clipmill("run", tmp_path / "again.yaml", *run).code == 0
    assert exported(tmp_path / "b").read_bytes() == path.read_bytes()
    assert "kept by 'listed'" in clipmill("funnel", "--run", tmp_path / "b").out
    assert "not_listed" in clipmill("why", uids[1], "--run", tmp_path / "b").out


def test_a_list_that_changed_is_read_again_and_a_bad_line_stops_the_run(
    clipmill, generated, uids, tmp_path
):
    listed = tmp_path / "list.txt"
    (tmp_path / "it.yaml").write_text(AGAIN % (generated, listed))
    run = ("run", tmp_path / "it.yaml", "--out", tmp_path / "run", "--workers", 0)
    for wanted in (uids[:2], [*uids[:2], uids[9], uids[9]]):
        listed.write_text("\n".join([*wanted, "f" * 32]))
        assert clipmill(*run).code == 0
        assert len(np.load(exported(tmp_path / "run"))) == len(wanted)
    assert "no row for            1  of 4 listed uids" in clipmill("funnel", "--run", run[3]).out
    for stored in (tmp_path / "run").glob("stages/listed-*/out/list.json"):
        stored.write_text(stored.read_text().replace('"missing": 1', '"missing": 7'))
    assert clipmill("funnel", "--run", run[3]).code == 1
    listed.write_text(f"{uids[0]}\nuid\n")
    said = clipmill(*run)
    assert said.code == 1
    assert f"{listed}, line 2" in said.err + said.out
