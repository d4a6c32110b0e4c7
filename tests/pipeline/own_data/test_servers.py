"""The model of a server on this machine is found as Ollama, vLLM and llama-server answer."""

import io
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_data import servers
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.own_data.servers import AUTO, captioner
from tests.text_server import TextServer


@contextmanager
def answering(answers):
    """A server on loopback that gives these objects by path, and 404 elsewhere; its port."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            size = int(self.headers.get("Content-Length") or 0)
            asked = json.loads(self.rfile.read(size) or b"{}")
            found = answers.get(self.path)
            found = found(asked) if callable(found) else found
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found if isinstance(found, bytes) else json.dumps(found).encode())

        do_GET = do_POST = _answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def models(*names):
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


def ollama(*seeing, blind=()):
    def show(asked):
        able = ["completion", "vision"] if asked["model"] in seeing else ["completion"]
        return {"capabilities": able, "details": {}}

    return {"/v1/models": models(*seeing, *blind), "/api/show": show}


VLLM = {"/v1/models": models("Qwen/Qwen2.5-VL-7B-Instruct")}
LLAMA = {"/v1/models": models("gemma.gguf"), "/props": {"modalities": {"vision": False}}}


@pytest.fixture
def ports(monkeypatch):
    """Sets where each server listens; the others at a port that nobody has."""
    monkeypatch.delenv("OLLAMA_HOST", raising=False)

    def ports(**here):
        names = {name.replace("_", "-"): port for name, port in here.items()}
        monkeypatch.setattr(servers, "PORTS", dict.fromkeys(servers.PORTS, 1) | names)

    return ports


@pytest.mark.parametrize(
    ("server", "answers", "model", "sees"),
    [
        ("ollama", ollama("llava:7b", blind=["llama3"]), "llava:7b", True),
        ("ollama", ollama(blind=["llama3"]), "llama3", False),
        ("vllm", VLLM, "Qwen/Qwen2.5-VL-7B-Instruct", None),
        ("llama_server", LLAMA, "gemma.gguf", False),
    ],
)
def test_each_servers_model_is_found_with_what_it_says_of_pictures(
    server, answers, model, sees, ports
):
    with answering(answers) as port:
        ports(**{server: port})
        found = captioner(AUTO)
    assert found.model == f"openai:http://127.0.0.1:{port}/v1#{model}"
    assert found.sees is sees


def test_of_servers_the_one_whose_model_sees_is_taken_and_several_are_asked_about(ports):
    with answering(LLAMA) as blind, answering(ollama("llava", "moondream")) as two:
        ports(ollama=two, llama_server=blind)
        with pytest.raises(UnsureError) as unsure:
            captioner(AUTO)
    assert [name.rpartition("#")[2] for name in unsure.value.candidates] == ["llava", "moondream"]
    with answering(LLAMA) as blind, answering(ollama("llava")) as one:
        ports(ollama=one, llama_server=blind)
        assert captioner(AUTO).model.endswith("#llava")


@pytest.mark.parametrize("host", ["127.0.0.1", "http://localhost", "0.0.0.0", ""])
def test_ollama_is_looked_for_where_its_variable_says(host, ports, monkeypatch):
    with answering(ollama("llava")) as port:
        ports()
        monkeypatch.setenv("OLLAMA_HOST", f"{host}:{port}")
        assert captioner(AUTO).sees


@pytest.mark.parametrize("answer", [None, b"<html>", b"[1]", b"[" * 100_000, {"data": 3}])
def test_what_is_no_such_server_is_passed_over_and_none_is_told(answer, ports):
    with answering({"/v1/models": answer}) as port:
        ports(vllm=port)
        with pytest.raises(RecipeError, match=r"no model answers(.|\n)*ollama serve"):
            captioner(AUTO)


def test_a_server_that_speaks_no_http_is_passed_over(ports):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        threading.Thread(target=greet, daemon=True).start()
        ports(vllm=server.getsockname()[1])
        with pytest.raises(RecipeError, match="no model answers"):
            captioner(AUTO)


def test_a_model_by_name_is_taken_as_it_is(ports):
    ports()
    assert captioner("vllm:Qwen/x").sees is None
    assert captioner("gguf:a.gguf").sees is False
    assert captioner("gguf:a.gguf#mmproj.gguf").sees is None


@pytest.fixture
def photos(tmp_path):
    """Six pictures that are unlike, each with a caption but the last."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        body = io.BytesIO()
        picture = np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(picture).save(body, "PNG")
        (folder / f"{number}.png").write_bytes(body.getvalue())
        if number < 5:
            (folder / f"{number}.txt").write_text(f"two black dogs on beach {'abcde'[number]}")
    return folder


@pytest.mark.slow("a whole run")
def test_one_command_asks_the_model_here_and_shows_ten_rows(photos, ports, clipmill, tmp_path):
    with TextServer().running() as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        ports(vllm=port)
        said = clipmill(
            *("curate", photos, "--out", tmp_path / "run", "--captions", "auto"), *("--workers", 0)
        )
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    shown = lines[next(i for i, line in enumerate(lines) if line.startswith("as found")) + 1 :]
    assert sum(line.startswith("two black dogs on beach") for line in shown) == 5
    recipe = yaml.safe_load((tmp_path / "run.yaml").read_text())["stages"]
    assert recipe["made"]["uses"] == "caption.synthesize"
    assert recipe["made"]["model"] == f"openai:http://127.0.0.1:{port}/v1#{server.model}"
    assert recipe["parquet"]["from"] == "chosen"
    (out,) = (tmp_path / "run").glob("stages/parquet-*/out")
    rows = pq.read_table(next(out.glob("*.parquet"))).to_pylist()
    assert server.asked.total() == len(rows) == 5


def test_a_model_that_sees_no_picture_rewrites_and_needs_captions(
    photos, ports, clipmill, tmp_path
):
    with answering(LLAMA) as port:
        ports(llama_server=port)
        clipmill("init", photos, "--captions", "auto", "--out", tmp_path / "c.yaml")
    made = yaml.safe_load((tmp_path / "c.yaml").read_text())["stages"]["made"]
    assert (made["uses"], made["form"]) == ("caption.rewrite", "chat")
    text = clipmill("init", photos, "--captions", "smollm2", "--out", tmp_path / "a.yaml")
    assert text.code == 0, text.err
    stages = yaml.safe_load((tmp_path / "a.yaml").read_text())["stages"]
    assert (stages["made"]["uses"], stages["made"]["from"]) == ("caption.rewrite", "pool")
    for file in photos.glob("*.txt"):
        file.unlink()
    said = clipmill("init", photos, "--captions", "smollm2", "--out", tmp_path / "b.yaml")
    assert (said.code, "name a model that takes pictures" in said.err) == (2, True)
