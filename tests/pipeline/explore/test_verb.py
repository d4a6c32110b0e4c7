"""`clipmill explore` as a process: it says where, answers, ends with Ctrl-C; what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from urllib.request import Request, urlopen

from tests import numbered


def test_it_says_where_and_ends_with_ctrl_c(own_stages, numbered_run):
    paths = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "clipmill.pipeline.cli",
            "explore",
            "--run",
            str(numbered_run / "run"),
        ],
        stdout=subprocess.PIPE,
        env=paths,
        text=True,
    )
    try:
        assert process.stdout is not None
        (address,) = re.findall(r"at (http://127\.0\.0\.1:\d+/\S{32}/) ", process.stdout.readline())
        question = Request(f"{address}ask/query", b'{"root": "pool", "end": "last"}')
        with urlopen(question, timeout=20) as answer:
            assert json.load(answer)["causes"][0]["rows"] == len(numbered.KEPT)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_port_in_use_and_a_folder_without_rows_end_with_2(
    clipmill, own_stages, numbered_run, tmp_path
):
    (tmp_path / "none").mkdir()
    said = clipmill("explore", "--run", tmp_path / "none")
    assert (said.code, "check --run" in said.err) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = clipmill("explore", "--run", numbered_run / "run", "--port", port)
    assert said.code == 2
    assert said.err.splitlines()[0].startswith(f"clipmill: port {port} cannot be opened")
    assert "leave --port out" in said.err
