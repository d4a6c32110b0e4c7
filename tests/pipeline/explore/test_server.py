"""The explorer's server: who may ask, what a browser may do with its answers."""

import json
import socket
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from urllib.parse import urlsplit

import pytest
from PIL import Image

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.server import serving
from clipmill.pipeline.explore.shown import picture_of
from clipmill.pipeline.report.pictures import small_picture


class Client:
    """Asks the server at an address, as any program on this machine could."""

    def __init__(self, address: str) -> None:
        self.at = urlsplit(address)
        self.token = self.at.path

    def ask(self, method: str, path: str, body: bytes | None = None, host: str | None = None):
        """Status, headers and body."""
        with closing(HTTPConnection("127.0.0.1", self.at.port, timeout=20)) as connection:
            headers = {"Host": host or self.at.netloc}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()


@pytest.fixture(scope="module")
def client(drawings):
    with serving(drawings.session) as address:
        yield Client(address)


def test_who_has_no_token_or_comes_under_another_name_is_refused(client):
    t = client.token
    ways = [
        ("GET", ""),
        ("GET", "page/main.js"),
        ("POST", "ask/run"),
        ("GET", "picture/pool/0/small"),
    ]
    for method, path in ways:
        assert client.ask(method, f"{t}{path}", b"{}")[0] == 200, path
        for wrong in (f"/{path}", f"/{'x' * 32}/{path}", f"{t[:-2]}/{path}"):
            assert client.ask(method, wrong, b"{}")[0] == 403, wrong
        for host in ("evil.test", f"evil.test:{client.at.port}", "127.0.0.1.evil.test", "0.0.0.0"):
            assert client.ask(method, f"{t}{path}", b"{}", host)[0] == 403, host
    assert client.ask("GET", t, host="localhost:1234")[0] == 200  # through a tunnel
    assert client.ask("OPTIONS", "*")[0] == 403


def test_every_answer_tells_the_browser_what_it_may_do(client):
    for path in (
        "",
        "page/main.js",
        "page/palette.css",
        "picture/pool/0/small",
        "picture/pool/99/small",
    ):
        _, headers, _ = client.ask("GET", client.token + path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Type"].startswith("application/json")


def test_pictures_are_made_anew_and_nothing_else_is_served(client, drawings):
    status, headers, body = client.ask("GET", f"{client.token}picture/pool/0/small")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert Image.open(BytesIO(body)).size == (80, 64)
    for hostile in (
        b"<script>alert(1)</script>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"",
    ):
        assert small_picture(hostile) is None
    (columns,) = drawings.session.roots.values()
    assert picture_of(columns, 10**6, 200) is None
    for path in ("picture/pool/60/small", "picture/none/0/small", "picture/pool/0/huge"):
        assert client.ask("GET", client.token + path)[0] == 404
    for path in ("page/server.py", "page/..%2fserver.py", "page/%2e%2e/server.py", "ask/run"):
        assert client.ask("GET", client.token + path)[0] in (403, 404, 405), path


def test_an_answer_that_cannot_be_given_says_what_to_do(client):
    def said(path: str, body: bytes) -> tuple[int, str]:
        status, _, answer = client.ask("POST", f"{client.token}ask/{path}", body)
        told = json.loads(answer)
        assert all(told[part] for part in ("found", "where", "do"))
        return status, told["found"]

    assert said("query", b"nonsense")[0] == 400
    assert said("query", b'{"root": "nosuch"}') == (400, "no rows of 'nosuch'")
    assert said("why", b'{"uid": "00"}') == (400, "'00' is no uid")
    assert said("nosuch", b"{}")[0] == 404
    assert said("query", b" " * (1 << 21)) == (413, "more than 1,048,576 bytes")


def test_a_fault_of_ours_is_an_answer_too(client, drawings, monkeypatch, capsys):
    def fails(session, body):
        raise ZeroDivisionError

    monkeypatch.setattr(type(drawings.session), "facts", fails)
    status, _, answer = client.ask("POST", f"{client.token}ask/run", b"{}")
    assert (status, json.loads(answer)["found"]) == (500, "a fault of ours: ZeroDivisionError")
    assert "in fails" in capsys.readouterr().err


def test_a_port_in_use_is_refused_where_it_was_asked_for_and_else_another_is_taken(drawings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        match = f"port {port} cannot be opened"
        with pytest.raises(RecipeError, match=match), serving(drawings.session, port):
            pass
        with serving(drawings.session) as address:
            assert urlsplit(address).port != port
    with pytest.raises(RecipeError, match="port 99999"), serving(drawings.session, 99999):
        pass
