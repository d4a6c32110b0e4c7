"""Runs a command, and ends it with all its children once the worker that started it is gone.

    python guard.py LOG WORKER COMMAND…

Standard input is a pipe that the process WORKER holds open. When it closes, or WORKER is no longer
the parent, the command gets SIGTERM, and processes left after five seconds get SIGKILL. A worker
killed by -9 cannot do that itself, and killing a process group would miss children that left it: on
Linux the guard inherits every orphan. If the guard itself is killed, the command dies with it.

Run as a file with only the standard library, because one is started beside every helper: `start`
and `end` are called by the worker, the rest runs in the guard's own process.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE_S = 5.0  # between SIGTERM and SIGKILL
LEAVE_S = GRACE_S + 2  # for the guard to end its command and itself
LOOK_S = 0.2  # between checks of the command and the worker
MOST_LOG = 2**20  # bytes of the log, and of the old one beside it
IS_LINUX = sys.platform == "linux"
DIE_WITH_PARENT, INHERIT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UNKNOWN = 127  # the shell's exit code for a command that cannot be started


def start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a command under a guard, with `env` added; returns the guard.

    The guard exits with the command's code, and watches a pipe that we hold open while we live. It
    has its own process group, so signals to ours, such as Ctrl-C, reach neither of the two.
    """
    own = [sys.executable, "-I", "-S", __file__, str(log), str(os.getpid())]
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


class Log:
    """A log file of limited size: once full it becomes `.old`, and a new one begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, piece: bytes) -> None:
        if self._file.tell() > MOST_LOG:
            self._file.close()
            self.path.replace(self.path.with_suffix(".old"))
            self._file = self.path.open("ab", buffering=0)
        self._file.write(piece)


class Command:
    """The command as a child of this process, which on Linux also inherits its orphans."""

    def __init__(self, command: list[str], log: Log) -> None:
        self.code: int | None = None  # exit code, once it has ended
        self._log = log
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_guard if IS_LINUX else None,
        )
        process.returncode = 0  # children are reaped here, not by subprocess
        assert process.stdout is not None
        self.pid, self.pipe, self.output = process.pid, process.stdout, process.stdout.fileno()
        os.set_blocking(self.output, False)

    def reap(self) -> bool:
        """Reaps children that have ended; returns whether any is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return True
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return False

    def copy(self) -> bool:
        """Copies new output to the log; returns False once the output is closed."""
        try:
            while piece := os.read(self.output, 65_536):
                self._log.write(piece)
        except BlockingIOError:
            return True
        return False

    def end(self) -> None:
        """Sends SIGTERM to the group and to children outside it; SIGKILL after the grace."""
        os.killpg(0, signal.SIGTERM)  # reaches this process too, where it only sets a flag
        limit, signalled = time.monotonic() + GRACE_S, set[int]()
        while self.reap():
            self.copy()  # a full pipe would block its last output
            is_over = time.monotonic() > limit
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    if is_over:
                        os.kill(child, signal.SIGKILL)
                    elif child not in signalled and os.getpgid(child) != os.getpgrp():
                        os.kill(child, signal.SIGTERM)  # once: a second may abort its clean-up
                signalled.add(child)
            time.sleep(0.02)
        self.copy()


def main(log: Log, worker: int, command: list[str]) -> int:
    """Runs the command under a guard; returns its exit code, 128 + N if signal N ended it.

    The guard is a fork of this process: if the children of a dead worker are killed, as Ray does,
    only this parent dies, and the guard ends the command.
    """
    reading, writing = os.pipe()  # closes when the guard ends
    parent, guard = os.getpid(), os.fork()
    if not guard:
        os.close(reading)
        os._exit(watch(log, parent, command))
    os.close(writing)
    os.close(0)
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)  # the guard, in the same group, handles them
    while not select.select([reading], [], [], LOOK_S)[0]:
        if os.getppid() != worker:
            return UNKNOWN  # a fork of the worker may hold its pipe; our exit tells the guard
    code = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    if code < 0:  # the guard was killed and the command with it; the command's children are left
        os.killpg(0, signal.SIGKILL)
    return code


def watch(log: Log, parent: int, command: list[str]) -> int:
    """Runs the command as its guard; ends it on a signal or when the worker is gone."""
    signals: list[int] = []  # termination signals received
    for number in ENDS:
        signal.signal(number, lambda number, _: signals.append(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # workers block Ctrl-C, helpers must not
    if IS_LINUX:
        ctypes.CDLL(None).prctl(INHERIT_ORPHANS, 1)
    try:
        child = Command(command, log)
    except OSError as error:
        log.write(f"{command[0]}: {error.strerror}\n".encode())
        return UNKNOWN
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(child.output, select.POLLIN)
    while not signals and os.getppid() == parent:
        child.reap()
        if child.code is not None:
            break
        ready = {file for file, _ in poll.poll(LOOK_S * 1000)}
        if 0 in ready and not os.read(0, 1):
            break
        if child.output in ready and not child.copy():
            poll.unregister(child.output)  # closed by a command that runs on
    child.end()
    if not IS_LINUX:
        os.killpg(0, signal.SIGKILL)  # reaches orphans within the group only
    assert child.code is not None
    return 128 - child.code if child.code < 0 else child.code


def _die_with_guard() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _children() -> list[int]:
    """Lists the pids of our children, inherited orphans included; empty unless on Linux."""
    if not IS_LINUX:
        return []
    children, own = [], os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(state.rpartition(")")[2].split()[1]) == own:
                children.append(int(folder.name))
    return children


if __name__ == "__main__":
    sys.exit(main(Log(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]))
