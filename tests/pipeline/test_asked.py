"""A run whose captions come from a server: one that is gone, a budget that is spent, a kept key."""

import threading
from pathlib import Path

import pytest

from tests.text_server import TextServer

KEY = "sk-a-key-of-nobody"
RECIPE = """
stages:
  pool: {uses: ingest.datacomp, path: POOL}
  made:
    uses: caption.rewrite
    from: pool
    model: "openai:URL#stand-in"
    styles: [human]
    limits: {concurrency: 4, retries: 1, deadline_s: 2, api_key_env: CAPTIONS_KEY}
"""


@pytest.fixture
def server():
    with TextServer(key=KEY).running() as one:
        yield one


@pytest.fixture
def run(clipmill, server, generated, tmp_path, monkeypatch):
    """Runs the recipe with some settings, in one folder."""
    monkeypatch.setenv("CAPTIONS_KEY", KEY)
    recipe = tmp_path / "made.yaml"
    text = RECIPE.replace("POOL", str(generated / "metadata")).replace("URL", server.url)
    recipe.write_text(text)

    def once(*settings: str):
        return clipmill("run", recipe, "--out", tmp_path / "run", "--workers", 0, *settings)

    return once


@pytest.mark.chaos
def test_a_server_that_vanishes_ends_the_run_and_the_next_one_asks_for_the_rest(run, server):
    def dies(asked) -> None:
        if asked.number == 50:
            threading.Thread(target=server.die).start()

    server.script, server.latency_s = dies, 0.01
    ended = run()
    assert ended.code == 1
    assert f"the server at {server.url} is gone" in ended.out + ended.err
    assert "start the server again, or mend it, and run again" in ended.out + ended.err
    before = set(server.answered)
    server.script, server.latency_s = lambda asked: None, 0
    server.come_back()
    assert run().code == 0
    assert 46 <= len(before) < 120
    assert sum(server.asked[digest] > 1 for digest in before) <= 4  # on their way when it died
    asked = server.asked.total()
    assert run().code == 0
    assert server.asked.total() == asked


@pytest.mark.slow("three runs that ask a server")
def test_a_budget_ends_the_run_and_a_larger_one_goes_on(run, server):
    ended = run("--set", "made.limits.max_tokens_total=0")
    assert (ended.code, server.asked.total()) == (1, 0)
    ended = run("--set", "made.limits.max_tokens_total=4000")
    assert ended.code == 1
    assert "raise limits.max_tokens_total" in ended.out + ended.err
    first = set(server.answered)
    assert len(first) > 10
    assert run("--set", "made.limits.max_tokens_total=1000000").code == 0
    assert all(server.asked[digest] == 1 for digest in first)


def test_a_key_is_in_no_file_and_on_no_screen(run, server, clipmill, tmp_path):
    server.script = lambda asked: "401" if asked.number % 2 else None
    ended = [run(), run()]
    server.script = lambda asked: None
    ended += [run(), clipmill("report", "--run", tmp_path / "run", "--out", tmp_path / "r.html")]
    assert [one.code for one in ended] == [1, 1, 0, 0]
    assert "CAPTIONS_KEY" in ended[0].out + ended[0].err
    assert all(KEY not in one.out + one.err for one in ended)
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
