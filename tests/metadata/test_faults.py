"""Kill points: counted across processes, deadly where asked, nothing otherwise."""

import os
import signal
import subprocess
import sys

import pytest

from clipmill.metadata.faults import reached

REACH = """
from clipmill.metadata.faults import reached
for name in "abc":
    reached("record", name)
    reached("write", name)
print("alive")
"""


@pytest.mark.parametrize(
    ("fault", "points"),
    [
        ("any:0", 6),
        ("any:4", 4),
        ("write:2", 4),  # a, a, b, b
        ("record:3", 5),
        ("record:4", 6),
        ("write b:1", 4),
        ("* [bc]:3", 5),  # record b, write b, record c
        ("write d:1", 6),
    ],
)
def test_a_process_dies_at_the_point_that_was_asked_for(fault, points, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REACH],
        env={**os.environ, "CLIPMILL_FAULT": fault, "CLIPMILL_FAULT_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    died = points < 6
    assert done.returncode == (-signal.SIGKILL if died else 0)
    assert done.stdout == ("" if died else "alive\n")
    assert len(list(tmp_path.iterdir())) == points


def test_nothing_happens_where_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("CLIPMILL_FAULT", raising=False)
    reached("record", "a")
