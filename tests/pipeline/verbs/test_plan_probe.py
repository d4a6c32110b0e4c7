"""`plan --probe`: what it asks is not asked again, and what it predicts comes true."""

import json

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.budget import spent_in
from clipmill.pipeline.engine.prediction import Predicted
from clipmill.pipeline.engine.probe import Probed
from clipmill.pipeline.provided import Usage
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.verbs._probe import page
from tests.text_server import TextServer

RECIPE = """
stages:
  pool: {uses: ingest.datacomp, path: POOL, shard_rows: 40}
  keep: {uses: select.sample, from: pool, fraction: 0.5}
  made:
    uses: caption.rewrite
    from: pool
    only: keep
    model: "openai:URL#stand-in"
    styles: [human, mscoco]
    limits: {concurrency: 4, usd_per_million_input: 1, usd_per_million_output: 3}
  other: {uses: caption.fuse, from: made, model: reference}
"""


@pytest.fixture
def server():
    with TextServer().running() as one:
        yield one


@pytest.fixture
def command(clipmill, server, generated, tmp_path):
    """Runs a verb on the recipe, in one folder."""
    recipe = tmp_path / "made.yaml"
    text = RECIPE.replace("POOL", str(generated / "metadata")).replace("URL", server.url)
    recipe.write_text(text)

    def once(verb: str, *more):
        return clipmill(verb, recipe, "--out", tmp_path / "run", *more)

    return once


def run(command, *more):
    return command("run", "--workers", 0, *more)


def test_rows_that_are_not_there_yet_name_the_run_that_makes_them(command, server, tmp_path):
    said = command("plan", "--until", "made", "--probe", 20)
    assert said.code == 2
    assert "no rows to probe 'made' with: pool, keep are not complete" in said.err
    assert f"made.yaml --until keep --out {tmp_path / 'run'}\n" in said.err
    assert "--until pool" not in said.err
    assert not (tmp_path / "run").exists()
    assert server.asked.total() == 0


def test_a_recipe_that_asks_no_model_says_so(clipmill, tmp_path):
    said = clipmill("plan", "dedup-all", "--out", tmp_path / "run", "--probe", 20)
    assert (said.code, said.out) == (0, "no stage of it asks a model\n")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--probe", 0, "--out", "run"], "--probe 0"),
        (["--probe", 5], "--probe without --out"),
        (["--workers", 2], "--workers without --probe"),
        (["--probe", 5, "--workers", 0], "--workers 0"),
    ],
)
def test_arguments_that_make_no_probe(clipmill, given, found):
    said = clipmill("plan", "quickstart", *given)
    assert said.code == 2
    assert found in said.err


@pytest.mark.chaos  # three runs and a server
def test_a_run_pays_for_the_other_rows_alone_and_takes_what_was_predicted(
    command, server, tmp_path
):
    assert run(command, "--until", "keep").code == 0
    before = latest(str(tmp_path / "run")).plan.stages
    said = command("plan", "--probe", 30, "--json", "--workers", 2)
    assert said.code == 2  # `other` has to wait for the rows of `made`
    assert "--until made" in said.err
    assert latest(str(tmp_path / "run")).plan.stages.keys() == before.keys()  # it is no run
    found = json.loads(said.out)["stages"]["made"]
    probed = dict(server.asked)
    assert found["asked"] == sum(probed.values()) == found["spent"]["requests"]
    assert (found["rows"], found["stored"], found["at_once"]) == (30, 0, 4)
    assert (found["workers"], found["shards"], found["is_steady"]) == (2, 3, True)

    again = command("plan", "--until", "made", "--probe", 30)
    assert again.code == 0
    assert f"{found['asked']} answers lay there already" in again.out
    assert dict(server.asked) == probed

    bodies = len(server.bodies)
    assert run(command, "--until", "made").code == 0
    assert set(server.asked.values()) == {1}
    later = server.bodies[bodies:]
    kept = _kept(tmp_path)
    assert found["left"] + 30 == kept
    predicted = {name: Predicted(**one) for name, one in found["predicted"].items()}
    real = {"requests": len(later), **_tokens(later)}
    real["usd"] = (real["prompt_tokens"] + 3 * real["completion_tokens"]) / 1e6
    for name, value in real.items():
        assert predicted[name].low <= value <= predicted[name].high, name
    none = command("plan", "--until", "made", "--probe", 30)
    assert none.out == "made: no rows are left to ask for\n"


@pytest.mark.chaos
def test_no_place_for_a_worker_and_another_seed_ask_nothing(command, server):
    assert run(command, "--until", "keep").code == 0
    said = command("plan", "--until", "made", "--probe", 9, "--set", "made.memory_gb=90000")
    assert said.code == 1
    assert "no place for a worker with 90000.0 GB" in said.err
    said = command("plan", "--until", "made", "--probe", 9, "--set", "seed=5")
    assert said.code == 2
    assert "seed 5, and this run has seed 0" in said.err
    assert server.asked.total() == 0


@pytest.mark.chaos
def test_a_probe_of_more_rows_than_there_are_asks_for_all_and_the_run_for_none(command, server):
    assert run(command, "--until", "keep").code == 0
    server.script = lambda asked: "no_usage"
    said = command("plan", "--until", "made", "--probe", 9999)
    assert said.code == 0
    first, *notes = said.out.splitlines()
    rows = first.split()[1]
    assert first.startswith(f"made: {rows} of {rows} rows probed, {server.asked.total()} requests")
    assert "  the server does not say how many tokens an answer took" in notes
    assert "the rest" not in said.out
    asked = server.asked.total()
    assert run(command, "--until", "made").code == 0
    assert server.asked.total() == asked > 0


@pytest.mark.chaos
def test_a_probe_keeps_to_the_budget_and_the_run_counts_what_it_spent(command, tmp_path, server):
    assert run(command, "--until", "keep").code == 0
    few = ("--set", "made.limits.max_tokens_total=2000", "--until", "made")
    said = command("plan", "--probe", 30, *few)
    assert said.code == 1
    assert "raise limits.max_tokens_total" in said.err
    asked = server.asked.total()
    assert 0 < asked < 60
    (folder,) = (tmp_path / "run" / "stages").glob("made-*")
    spent = spent_in(Storage(str(folder / "budget")))["tokens"]
    assert spent == sum(_tokens(server.bodies).values()) <= 2000
    more = ("--set", "made.limits.max_tokens_total=3000", "--until", "made")
    assert run(command, *more).code == 1
    assert sum(_tokens(server.bodies).values()) <= 3000
    assert set(server.asked.values()) == {1}


def _kept(tmp_path) -> int:
    """Rows that the mask keeps."""
    state = latest(str(tmp_path / "run"))
    shards = sorted(state.stages["keep"].shards)
    tables = [
        table["keep"].to_pylist()
        for shard in shards
        for table in state.stored["keep"].read(state.stages["keep"].shards[shard], ["keep"], 99)
    ]
    return sum(sum(map(bool, keep)) for keep in tables)


def _tokens(bodies) -> dict[str, int]:
    """What the server says that its answers took."""
    from clipmill.stages.models.reference import reply

    used = [reply("completions", body)["usage"] for body in bodies]
    names = ("prompt_tokens", "completion_tokens")
    return {name: sum(one[name] for one in used) for name in names}


def test_the_page_says_what_it_does_not_know():
    took = tuple(
        (Usage(prompt_tokens=50, completion_tokens=n, usd=None, slot_s=(0, 1), at_once=8),)
        for n in range(4)
    )
    probed = Probed(left=96, shards=2, workers=1, took=took, reasons={"server_busy": 1}, seconds=2)
    said = page("made", probed)
    assert said.startswith("made: 4 of 100 rows probed, 4 requests in 2.0 s\n")
    assert "without an answer: server_busy 1" in said
    assert "no dollars: limits.usd_per_million_input and _output name no prices" in said
    assert "no time: too few requests were sent" in said
    assert "tokens of prompts         50         4,800   " in said
