"""Data that fsspec reaches: its memory, and servers that give parts of files or none."""

import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.globs import files_of
from clipmill.metadata.storage import Storage

BODY = bytes(range(256)) * 400


@contextmanager
def served(gives_parts: bool, status: int = 200):
    """A server of BODY at every path but /gone, and the requests that it has had."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.command, self.path, self.headers.get("Range")))
            body, code = BODY, 404 if "gone" in self.path else status
            ranged = self.headers.get("Range", "")
            if gives_parts and code == 200 and ranged.startswith("bytes="):
                start, stop = ranged.removeprefix("bytes=").split("-")
                body, code = body[int(start) : int(stop) + 1], 206
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            if code == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop}/{len(BODY)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # its name there

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("gives_parts", [True, False])
def test_a_file_of_the_web_is_one_file_that_is_read_in_parts_and_at_once(gives_parts):
    with served(gives_parts) as (url, asked):
        (file,) = files_of(f"{url}/a/pairs.bin?download=1")
        assert (file.name, file.size) == ("pairs.bin", len(BODY))
        storage = Storage(f"{url}/a?download=1")
        assert storage.read_at("pairs.bin", 1000, 300) == BODY[1000:1300]
        with storage.fs.open_input_stream(storage.locate("pairs.bin")) as stream:
            assert stream.read() == BODY
        whole = [it for it in asked if it[0] == "GET" and it[2] is None]
        assert {path for _, path, _ in asked} == {"/a/pairs.bin?download=1"}
        before = len(whole)
        storage.read_at("pairs.bin", 0, 10)
        whole = [it for it in asked if it[0] == "GET" and it[2] is None]
        assert len(whole) == before  # parts, or the copy
        assert files_of(f"{url}/gone") == []


def test_a_file_that_changed_is_copied_again(monkeypatch):
    with served(False) as (url, _):
        storage = Storage(url)
        assert storage.read_at("pairs.bin", 1, 9) == BODY[1:10]
        monkeypatch.setitem(globals(), "BODY", b"other pairs")
        assert storage.read_at("pairs.bin", 1, 9) == b"ther pair"


def test_what_a_server_refuses_is_an_error_of_a_file():
    with served(False, 403) as (url, _), pytest.raises(OSError, match="403"):
        files_of(f"{url}/a.csv")


def test_what_fsspec_knows_is_a_folder(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/clipmill/a/1.csv": b"one", "/clipmill/2.csv": b"two"})
    try:
        assert [it.name for it in files_of("memory://clipmill/**/*.csv")] == ["2.csv", "a/1.csv"]
        assert Storage("memory://clipmill").read("a/1.csv") == b"one"
        table = pa.table({"n": [1, 2]})
        pq.write_table(table, tmp_path / "it.parquet")
        memory.put(str(tmp_path / "it.parquet"), "/clipmill/it.parquet")
        with Storage("memory://clipmill").open("it.parquet") as file:
            assert pq.read_table(file) == table
    finally:
        memory.rm("/clipmill", recursive=True)


def test_datasets_of_the_hub_are_read_by_its_own_package():
    storage = Storage("hf://datasets/user/name/data")
    assert storage.fs.handler.fs.protocol == "hf"
    assert storage.locate("a.parquet") == "datasets/user/name/data/a.parquet"


WITHOUT = """
import sys
from clipmill.metadata.elsewhere import UriError
from clipmill.metadata.storage import Storage
class Missing:
    def find_spec(name, *_):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing)
try:
    Storage(sys.argv[2])
except UriError as error:
    print(error.package, error)
"""


@pytest.mark.parametrize(
    ("package", "uri"),
    [("fsspec", "https://a.test/a.csv"), ("huggingface_hub", "hf://datasets/a/b")],
)
def test_a_package_that_is_missing_is_named(package, uri):
    command = [sys.executable, "-c", WITHOUT, package, uri]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{package} cannot open {uri}: the package '{package}' is not installed\n"
