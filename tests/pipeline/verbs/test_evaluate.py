"""`clipmill evaluate`: a table of any model, without a recipe; and what `doctor` says of tasks."""

import json
import shutil
from pathlib import Path

import pytest

from clipmill.pipeline.verbs.evaluate import text
from tests.stages.clip.exported import write_model
from tests.stages.listed_folders import grouped
from tests.stages.task_folders import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "tasks"
    write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two seeds of one model: the same weights under two names, as `--seeds` again makes them."""
    folder = write_model(tmp_path_factory.mktemp("model") / "m", "tiny", seed=0)
    for seed in (0, 1):
        card = json.loads((folder / "out" / "model.json").read_text()) | {"seed": seed}
        (folder / "out" / f"seed-{seed}.model.json").write_text(json.dumps(card))
        weights = folder / "out" / "model.safetensors"
        shutil.copy(weights, folder / "out" / f"seed-{seed}.model.safetensors")
    (folder / "out" / "model.json").unlink()
    return folder


def test_all_seeds_of_a_checkpoint_are_in_the_table_and_scored_once(
    clipmill, tasks, model, tmp_path
):
    out = tmp_path / "scores"
    here = ("evaluate", f"checkpoint:{model}", "--tasks", tasks, "--out", out, "--workers", 0)
    said = clipmill(*here)
    assert said.code == 0
    lines = said.out.splitlines()
    assert sum(line.startswith("colours  acc1 ") for line in lines) == 2
    assert f"checkpoint:{model}, seed 1 (rules: clipmill 2; datacomp-38/1)" in lines
    assert f"clipmill doctor tasks {tasks} says how to bring each" in lines
    assert len(list((out / "once").iterdir())) == 2  # two tasks, and one model under two names
    found = json.loads(clipmill(*here, "--json").out)
    assert [one["seed"] for one in found["models"]] == [0, 1]
    assert found["models"][0]["tasks"]["colours"]["chance"] == 0.2


def test_without_out_nothing_is_left(clipmill, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = clipmill("evaluate", "reference", "--tasks", tasks, "--workers", 0)
    assert (said.code, list(tmp_path.iterdir())) == (0, [])
    assert "words" in said.out


def test_a_model_of_a_stage_is_found_in_its_run(clipmill, tasks, tmp_path):
    """A run that trains nothing is no place for one."""
    run = tmp_path / "scores"
    clipmill("evaluate", "reference", "--tasks", tasks, "--out", run, "--workers", 0)
    said = clipmill("evaluate", "stage:scores", "--run", run, "--tasks", tasks)
    assert (said.code, said.err.splitlines()[0]) == (2, "clipmill: 'scores' trains no model")
    said = clipmill("evaluate", "stage:scores", "--tasks", tasks)
    assert (said.code, "add --run RUN" in said.err) == (2, True)
    said = clipmill("evaluate", "reference", "--run", run, "--tasks", tasks)
    assert (said.code, "--run without a model of a stage" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("spoil", "code", "found"),
    [
        (lambda t: (t / "colours" / "test" / "0.tar").unlink(), 2, "0.tar is missing"),
        (lambda t: (t / "colours" / "classnames.txt").write_text("a\nb\n"), 1, "class 2, and"),
        (lambda t: shutil.rmtree(t / "colours" / "test"), 2, "no such file"),
        (lambda t: shutil.rmtree(t), 2, "no such folder"),
    ],
    ids=["half a task", "labels that do not fit", "no shards", "no folder"],
)
def test_bad_tasks_end_it_in_one_sentence(clipmill, tmp_path, tasks, spoil, code, found):
    mine = tmp_path / "tasks"
    shutil.copytree(tasks, mine)
    spoil(mine)
    said = clipmill("evaluate", "reference", "--tasks", mine, "--workers", 0)
    assert (said.code, found in said.err, str(mine) in said.err) == (code, True, True)
    assert said.err.count("do:") == 1


def test_weights_of_another_architecture_are_refused(clipmill, tmp_path, tasks, model):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    card = other / "out" / "seed-0.model.json"
    facts = json.loads(card.read_text())
    facts["architecture"]["width"] = 16
    card.write_text(json.dumps(facts))
    said = clipmill("evaluate", f"checkpoint:{other}", "--tasks", tasks, "--workers", 0)
    assert (said.code, "weights of another architecture" in said.err) == (1, True)


def test_an_average_that_is_partial_names_what_is_missing():
    metric = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}
    task = {"metric": "acc1", "metrics": {"acc1": metric}, "instances": None, "pictures": 9}
    average = metric | {"tasks": 37, "missing": ["GeoDE"], "complete": False}
    one = {"seed": 0, "rules": "r", "tasks": {"a": task}}
    one["averages"] = {"partial_average_of_37": average}
    said = text({"models": [one]}, "m", "eval", "").splitlines()
    assert "1 of DataComp's 38 tasks are missing: GeoDE" in said
    assert any(line.startswith("partial_average_of_37 ") for line in said)


def test_a_snapshot_is_named_by_its_share_of_the_samples():
    empty = {"seed": 3, "rules": "1", "tasks": {}, "averages": {}}
    models = [{**empty, "card": f"out/seed-3.{at}model.json"} for at in ("", "at-25.")]
    said = text({"models": models}, "m", "eval", "")
    assert "m, seed 3 (rules: 1)" in said
    assert "m, seed 3, at 25 % of its samples (rules: 1)" in said


def test_doctor_says_which_of_the_38_are_missing_and_how_to_bring_each(clipmill, tmp_path):
    grouped(tmp_path / "wds_geode_test", 40, [[0]] * 5, list(range(5)))
    said = clipmill("doctor", "tasks", tmp_path)
    assert said.code == 0
    assert "5 samples, and DataComp's GeoDE has 12,488" in said.out
    assert "37 of the 38 tasks of its average are not here" in said.out
    assert "note  GeoDE" not in said.out
    bring = "git lfs clone https://huggingface.co/datasets/djghosh/wds_vtab-dtd_test"
    assert bring in said.out
    assert "write the test split of https://huggingface.co/datasets/nlphuji/winogavil" in said.out
