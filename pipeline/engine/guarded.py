"""Starts processes under a guard, which ends them on request or when their starter is gone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipmill.pipeline.engine import guard

LEAVE_S = guard.GRACE_S + 2  # for the guard to end its command and itself


def start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a command under a guard, with `env` added; returns the guard.

    The guard exits with the command's code, and watches a pipe that we hold open while we live. It
    has its own process group, so signals to ours, such as Ctrl-C, reach neither of the two.
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
    """Closes the guard's pipe and waits until its group is gone; kills it after LEAVE_S."""
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
