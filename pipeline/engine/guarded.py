"""Processes that a guard ends: on request, and when the process that started them is gone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipmill.pipeline.engine import guard

LEAVE_S = guard.GRACE_S + 2  # what the guard has to end its command and itself


def start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """The guard of a command, `env` added to its environment; it ends as the command does.

    It watches a pipe that we hold open as long as we live. Its group is its own, so that Ctrl-C and
    whoever kills ours reach neither.
    """
    own = [sys.executable, "-I", "-S", guard.__file__, str(log), str(os.getpid())]
    return subprocess.Popen(
        [*own, *command],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Closes the guard's pipe and waits until its group is gone, which is killed if need be."""
    assert process.stdin is not None
    process.stdin.close()
    limit = time.monotonic() + LEAVE_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < limit:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
