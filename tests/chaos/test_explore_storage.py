"""The explorer over a run in an object store: the same counts, and no key in what it says."""

import json

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.progress import Lines
from tests import numbered
from tests.conftest import OWN_STAGES

pytestmark = pytest.mark.soak


def test_a_run_in_a_bucket_is_explored(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(OWN_STAGES / "stages"))
    numbered.write_pool(tmp_path)
    uri = bucket.uri("explored")
    outcome = run_plan(numbered.plan_of(tmp_path), Storage(uri), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    session = Session(uri, tmp_path / "explored.yaml")
    assert "SECRET" not in json.dumps(session.facts())
    query = {"root": "pool", "end": "last", "histograms": ["one.b"], "limit": 5}
    answer = session.query(json.dumps(query).encode())
    causes = {(it["stage"], it["reason"]): it["rows"] for it in answer["causes"][1:]}
    assert causes == {cause: len(rows) for cause, rows in numbered.CAUSES.items()}
    page = answer["parts"]["rows"]["page"]
    rows = session.rows(json.dumps({"root": "pool", "rows": page}).encode())
    assert [row["text"] for row in rows] == [f"row {i + 1}" for i in page]
    cut = next(it for it in session.facts()["roots"][0]["thresholds"] if it["name"] == "b")
    threshold = {**{name: cut[name] for name in ("stage", "name", "text")}, "value": 12}
    asked = json.dumps({"root": "pool", "threshold": threshold}).encode()
    changed = session.changed(asked)
    assert "SECRET" not in json.dumps(changed)
    assert session.save(asked)["file"] == str(tmp_path / "explored-2.yaml")
