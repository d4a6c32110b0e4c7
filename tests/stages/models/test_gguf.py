"""gguf:FILE and smollm2: what they ask of a worker. The server itself is tested in chaos."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from clipmill.pipeline.errors import ClipmillError, RecipeError, StageError
from clipmill.stages.models import gguf, smollm2
from clipmill.stages.models.endpoint import Limits
from clipmill.stages.models.generator import environments_of
from tests.stages.models.started import Started


@pytest.fixture
def weights(tmp_path) -> Path:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    (tmp_path / "eyes.gguf").write_bytes(b"eyes")
    return tmp_path


def test_a_server_has_the_file_its_slots_and_a_key_that_no_command_line_shows(weights):
    started = Started(weights)
    name = str(weights / "model.gguf")
    endpoint = gguf.endpoint(name, started.worker, Limits(concurrency=5))
    python, _, _, socket, *rest = started.command
    assert python == "/other/python"
    assert endpoint.url == f"unix:{socket}"
    assert rest == [name, "", "5", "2048", "3"]
    assert endpoint.concurrency == 5
    assert started.env["LLAMA_API_KEY"] == endpoint.key
    assert endpoint.key not in " ".join(started.command)
    assert endpoint.key not in repr(endpoint)
    assert endpoint.identity == hashlib.sha256(b"weights").hexdigest()
    assert started.pinned == {f"model {name}": endpoint.identity}


def test_slots_are_no_more_than_help(weights):
    for device, most in (("cpu", gguf.SLOTS), ("cuda", gguf.SLOTS_ON_GPU)):
        worker = Started(weights, device=device).worker
        made = gguf.endpoint(str(weights / "model.gguf"), worker, Limits(concurrency=999))
        assert made.concurrency == most


def test_a_model_that_sees_has_two_files_and_both_are_its_identity(weights):
    started = Started(weights)
    name = f"{weights}/model.gguf#{weights}/eyes.gguf"
    seeing = gguf.endpoint(name, started.worker, Limits())
    assert started.command[4:6] == [f"{weights}/model.gguf", f"{weights}/eyes.gguf"]
    blind = gguf.endpoint(f"{weights}/model.gguf", started.worker, Limits())
    assert blind.identity in seeing.identity
    assert blind.identity != seeing.identity


@pytest.mark.parametrize("name", ["nosuch.gguf", "model.gguf#nosuch.gguf"])
def test_a_file_that_is_not_there_is_an_error(name, weights):
    named = "#".join(f"{weights}/{part}" for part in name.split("#"))
    with pytest.raises(ClipmillError, match=r"nosuch\.gguf"):
        gguf.endpoint(named, Started(weights).worker, Limits())


def test_a_socket_whose_path_no_system_takes_is_an_error(weights):
    deep = weights / ("x" * 100)
    with pytest.raises(StageError, match=r"set TMPDIR"):
        gguf.endpoint(str(weights / "model.gguf"), Started(deep).worker, Limits())


def test_other_weights_than_those_known_of_smollm2_are_refused(weights, monkeypatch):
    (weights / "eyes.gguf").unlink()
    said = subprocess.CompletedProcess([], 0, stdout=f"{weights}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    sha256, started = hashlib.sha256(b"weights").hexdigest(), Started(weights)
    with pytest.raises(StageError, match=f"SmolLM2-135M-Instruct has digest {sha256[:12]}"):
        smollm2.endpoint("", started.worker, Limits())
    assert not started.command
    monkeypatch.setenv("CLIPMILL_WEIGHTS", sha256)
    assert smollm2.endpoint("", started.worker, Limits()).identity == sha256


def test_environments_are_named_before_anything_is_made():
    [llama] = environments_of("gguf:any.gguf")
    assert llama.packages == (gguf.LLAMA,)
    [packaged] = environments_of("smollm2")
    assert packaged.packages == (gguf.LLAMA, smollm2.WEIGHTS)
    for wrong in ("gguf:", "smollm2:large"):
        with pytest.raises(RecipeError):
            environments_of(wrong)
