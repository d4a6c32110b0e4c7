"""Runs that are not finished, are being written to, or have lost a file."""

import json
from pathlib import Path

import pytest

from clipmill.pipeline.explore.server import serving
from clipmill.pipeline.explore.session import Session
from tests import numbered
from tests.artefacts import linked
from tests.pipeline.explore.conftest import Asker
from tests.pipeline.explore.test_server import Client

pytestmark = pytest.mark.usefixtures("own_stages")


def folder_of(run: Path, stage: str) -> Path:
    (folder,) = (run / "stages").glob(f"{stage}-*")
    return folder


@pytest.fixture
def finished(numbered_run, tmp_path):
    """The numbered run, which may be written to."""
    return linked(numbered_run, tmp_path / "numbered")


@pytest.fixture
def unfinished(finished):
    """The numbered run before `two` has done its second shard, rows 7 to 13."""
    for file in folder_of(finished / "run", "two").iterdir():
        if file.name.startswith(("000001", "records", "manifest")):
            file.unlink()
    return finished


def asked(folder: Path) -> Asker:
    return Asker(Session(str(folder / "run"), folder / "run.yaml"))


def test_what_is_stored_of_an_unfinished_run_is_shown_and_the_rest_said(unfinished):
    ask = asked(unfinished)
    facts = ask("run")
    assert facts["roots"][0]["ends"] == []
    told = {stage["name"]: (stage["is_complete"], stage["there"]) for stage in facts["stages"]}
    assert told["one"] == (True, "done")
    assert told["two"][0] is False
    answer = ask("query", histograms=["two.c"], categories=["two.reason"])
    counted = {it["value"]: it["rows"] for it in answer["categories"]["two.reason"]["values"]}
    assert counted["not done yet"] == 7
    assert answer["histograms"]["two.c"]["all"][-1] >= 7  # without a value
    late = {"is": "one of", "column": "two.reason", "values": ["not done yet"]}
    assert ask.page(late) == [*range(7, 14)]
    (row,) = ask("rows", rows=[8], columns=["one.b", "two.c"])
    assert row["values"] == {"one.b": 9, "two.c": None}
    assert ask("why", uid=row["uid"])["stages"][1]["values"] == {"b": 9}


def test_a_second_look_sees_what_was_stored_since(unfinished):
    ask = asked(unfinished)
    assert ask("query", categories=["two.reason"])["count"] == 20
    numbered.run(unfinished)
    facts = ask("look-again")
    assert facts["roots"][0]["ends"] == ["last", "first"]
    counted = ask("query", categories=["two.reason"])["categories"]["two.reason"]["values"]
    assert "not done yet" not in {it["value"] for it in counted}
    assert ask("query", end="last")["causes"][0]["rows"] == len(numbered.KEPT)


def test_a_file_that_has_gone_since_is_told_with_what_to_do(finished):
    ask = asked(finished)
    for file in folder_of(finished / "run", "one").glob("*.parquet"):
        file.unlink()
    with serving(ask.session) as address:
        client = Client(address)
        body = json.dumps({"root": "pool", "histograms": ["one.b"]}).encode()
        status, _, answer = client.ask("POST", f"{client.token}ask/query", body)
        assert status == 409
        assert "is gone or has changed" in json.loads(answer)["found"]
        assert "look again" in json.loads(answer)["do"]
        assert client.ask("POST", f"{client.token}ask/query", b'{"root": "pool"}')[0] == 200
