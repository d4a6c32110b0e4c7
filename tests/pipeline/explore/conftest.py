"""Explorers over finished runs: of numbers known by head, of drawn pictures, of clusters."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipmill.pipeline.explore.session import Session
from tests import numbered
from tests.conftest import OWN_STAGES


@dataclass
class Asker:
    """Asks a session as the page does, in JSON, about the rows of its first root."""

    session: Session

    def __call__(self, question: str, **given: Any) -> Any:
        root = self.session.facts()["roots"][0]["root"]
        body = {"root": root, **given} if question in ("query", "rows", "recipe", "save") else given
        answer = self.session.answers[question](json.dumps(body).encode())
        return json.loads(json.dumps(answer))

    def page(self, *filters: Any, **given: Any) -> list[int]:
        answer = self("query", filters=filters, limit=200, **given)
        return answer["parts"]["rows"]["page"]

    def threshold(self, text: str, value: float) -> dict[str, Any]:
        cuts = self.session.facts()["roots"][0]["thresholds"]
        (cut,) = (cut for cut in cuts if cut["text"] == text)
        return {**{name: cut[name] for name in ("stage", "name", "text")}, "value": value}


def asker(state, folder: Path) -> Asker:
    return Asker(Session(str(state.run.path), folder / "run.yaml"))


@pytest.fixture(scope="module")
def numbers(own_stages, numbered_run, tmp_path_factory) -> Asker:
    """Row i of 20 holds a = i + 1: see tests/numbered.py."""
    return Asker(
        Session(str(numbered_run / "run"), tmp_path_factory.mktemp("numbers") / "run.yaml")
    )


@pytest.fixture(scope="module")
def drawings(own_stages, state, tmp_path_factory) -> Asker:
    return asker(state, tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def clusters(own_stages, clustered, tmp_path_factory) -> Asker:
    return asker(clustered, tmp_path_factory.mktemp("clusters"))


def write_several(folder: Path) -> None:
    """Runs three recipes: one of other rules, one of other shards, the numbered one."""
    numbered.write_pool(folder)
    for old, new in (("b < 18", "b < 15"), ("shard_rows: 7", "shard_rows: 5")):
        numbered.run(folder, numbered.STAGES.replace(old, new).replace("e <> 9", "e <> 11"))
    numbered.run(folder)


@pytest.fixture(scope="module")
def several(own_stages, artefacts):
    """A folder with runs of three recipes."""
    return artefacts("several", write_several, OWN_STAGES, Path(numbered.__file__))
