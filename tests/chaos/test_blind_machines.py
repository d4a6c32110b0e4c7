"""A machine of a cluster that lacks the keys of the storage, or a folder: refused by its name."""

import re
from functools import partial
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.machines import unseen
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.ray import RayExecutor
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder import lock
from tests import numbered
from tests.chaos.flaky import Trouble
from tests.pipeline.executors.test_ray_nodes import nodes_with

pytestmark = pytest.mark.chaos
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_machines_without_keys_are_named_before_anything_runs(proxy, tmp_path, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    uri = f"s3://bucket/blind?endpoint_override=127.0.0.1:{proxy.port}&scheme=http"
    numbered.write_pool(tmp_path)
    plan = numbered.plan_of(tmp_path, "pool: {uses: ingest.url_list, path: none}")
    with nodes_with(monkeypatch, 1, 1) as (made, nodes):
        for name in KEYS:  # of this process alone: the nodes run by now
            monkeypatch.setenv(name, "key")
        proxy.troubles.append(Trouble(".", "no keys"))
        executor = RayExecutor(address=made.address)
        try:
            seen = executor.on_machines(partial(str, "seen"))
            with pytest.raises(RecipeError) as caught:
                run_plan(plan, Storage(uri), executor, Lines())
        finally:
            executor.close()
    found, _, do = caught.value.args
    assert (
        len(re.findall("can't read the run folder: .*?(?:ACCESS_DENIED|AccessDenied)", found)) == 2
    )
    assert sorted(seen) == sorted(re.findall(r"\S+/[0-9a-f]{8}(?= can't)", found))
    assert {name[-8:] for name in seen} == {node.node_id[:8] for node in nodes}
    assert "keys" in do
    proxy.troubles.clear()
    assert Storage(uri).child("stages").folders() == []


def test_a_folder_that_a_machine_lacks_is_named(tmp_path):
    run = Storage(str(tmp_path / "run"))
    with lock.held(run) as owned:
        owner = owned.hold.owner
        assert unseen(run.uri, owner, [str(tmp_path)]) == ""
        gone = str(Path(tmp_path, "gone"))
        assert unseen(run.uri, owner, [str(tmp_path), gone]) == f"has no {gone}"
        other = unseen(str(tmp_path / "other"), owner, [])
        assert other == "has another run folder at that path, or none"
