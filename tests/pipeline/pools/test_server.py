import gc
import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.pools.server import serve, start_server

BODY = b"0123456789"
ACTS = {
    "s00/gone.png": {"status": 410},
    "s00/twice.png": {"status": 503, "times": 2},
    "s00/away.png": {"redirect": "/s00/plain.png"},
    "s00/late.png": {"delay": 0.3},
    "s00/drip.png": {"drip": 0.3},
    "s00/never.png": {"hang": True},
    "s00/text.png": {"content_type": "text/plain", "headers": {"X-Robots-Tag": "noai"}},
}


@pytest.fixture
def folder(tmp_path):
    site = tmp_path / "www" / "s00"
    site.mkdir(parents=True)
    for name in ("plain.png", "twice.png", "late.png", "drip.png", "text.png"):
        (site / name).write_bytes(BODY)
    (tmp_path / "www" / "_behaviour.json").write_text(json.dumps(ACTS))
    (tmp_path / "truth.parquet").write_bytes(b"secret")
    return tmp_path


@pytest.fixture
def get(folder):
    with start_server(folder) as url:

        def fetch(path, timeout_s=5.0):
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read(), answer.headers
            finally:
                connection.close()

        yield fetch


def test_a_plain_file_is_served_with_its_type(get):
    status, body, headers = get("/s00/plain.png")
    assert (status, body, headers["Content-Type"]) == (200, BODY, "image/png")


def test_a_status_is_answered_for_ever_or_so_many_times(get):
    assert [get("/s00/gone.png")[0] for _ in range(3)] == [410, 410, 410]
    assert [get("/s00/twice.png")[0] for _ in range(3)] == [503, 503, 200]


def test_a_redirect_names_where_to_go(get):
    status, _, headers = get("/s00/away.png")
    assert (status, headers["Location"]) == (302, "/s00/plain.png")


@pytest.mark.parametrize("path", ["/s00/late.png", "/s00/drip.png"])
def test_a_slow_answer_is_whole_in_the_end(get, path):
    start = time.perf_counter()
    assert get(path)[1] == BODY
    assert time.perf_counter() - start >= 0.25


def test_a_hanging_answer_never_comes_and_does_not_hold_the_others(get):
    with pytest.raises(TimeoutError):
        get("/s00/never.png", timeout_s=0.2)
    assert get("/s00/plain.png")[0] == 200


def test_a_client_that_left_a_hanging_answer_leaves_nothing_behind(folder, caplog):
    with start_server(folder) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"GET /s00/never.png HTTP/1.1\r\nHost: here\r\n\r\n")
            time.sleep(0.1)
        time.sleep(0.1)
    gc.collect()
    assert not [line.message for line in caplog.records if line.name == "asyncio"]


def test_type_and_headers_are_as_asked(get):
    _, _, headers = get("/s00/text.png")
    assert (headers["Content-Type"], headers["X-Robots-Tag"]) == ("text/plain", "noai")


@pytest.mark.parametrize(
    "path",
    [
        *("/none.png", "/_behaviour.json", "/../truth.parquet", "/s00"),
        *("/%00", "/s00/%00.png", f"/{'a' * 300}", "/s00/../_behaviour.json"),
    ],
)
def test_only_pictures_are_given_out(get, path):
    assert get(path)[0] == 404


def test_the_server_listens_on_loopback_only(folder):
    with start_server(folder) as url:
        assert url.startswith("http://127.0.0.1:")


def test_a_taken_port_is_named(folder):
    with (
        start_server(folder) as url,
        pytest.raises(StageError, match="cannot be opened"),
        start_server(folder, urlsplit(url).port),
    ):
        pass


def test_a_folder_without_a_pool_is_refused(tmp_path):
    (tmp_path / "it.jpg").touch()
    for path, found in ((tmp_path, "no pool"), (tmp_path / "it.jpg", "no such folder")):
        with pytest.raises(RecipeError, match=found), start_server(path):
            pass


def test_a_pool_is_served_at_the_port_that_its_urls_name(folder, monkeypatch):
    def start(directory, port):
        raise StopIteration(port)

    monkeypatch.setattr("clipmill.pipeline.pools.server.start_server", start)
    (folder / "pool.json").write_text('{"port": 9321}')
    for given in (None, 9321):
        with pytest.raises(StopIteration) as stopped:
            serve(folder, given)
        assert stopped.value.value == 9321


def test_serving_on_a_port_that_the_urls_do_not_name_is_refused(folder):
    (folder / "pool.json").write_text('{"port": 8765}')
    with pytest.raises(RecipeError, match="8765, not 9999"):
        serve(folder, port=9999)
