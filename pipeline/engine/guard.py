"""Runs a command, and ends it with all its children once the worker that asked for it is gone.

    python guard.py LOG WORKER COMMAND…

Standard input is a pipe that the process WORKER holds open. When that closes, or WORKER is no
longer the parent, the command gets SIGTERM and what is left five seconds later SIGKILL. A worker
killed by -9 can do nothing itself, and a group alone would miss children that left it: on Linux the
guard inherits every orphan. Where the guard itself is killed, the command dies with it.

Run as a file, by the standard library alone, for it is started beside every helper.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 5.0  # what a command has to leave by itself
LOOK_S = 0.2  # between two looks at the command and the worker
MOST_LOG = 2**20  # bytes of the log, and of the one before it
IS_LINUX = sys.platform == "linux"
DIE_WITH_PARENT, INHERIT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UNKNOWN = 127  # the shell's code for a command that cannot be started


class Log:
    """A file that keeps the last of what is written: once full it becomes `.old`."""

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
    """The command as a child of this process; orphans of its own become children of ours."""

    def __init__(self, command: list[str], log: Log) -> None:
        self.code: int | None = None  # once it has ended
        self._log = log
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_guard if IS_LINUX else None,
        )
        process.returncode = 0  # children are reaped here, and not by subprocess
        assert process.stdout is not None
        self.pid, self.pipe, self.output = process.pid, process.stdout, process.stdout.fileno()
        os.set_blocking(self.output, False)

    def reap(self) -> bool:
        """Takes note of children that have ended; whether any is left."""
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
        """What it has written, to the log; false once it has closed its output."""
        try:
            while piece := os.read(self.output, 65_536):
                self._log.write(piece)
        except BlockingIOError:
            return True
        return False

    def end(self) -> None:
        """SIGTERM to the group and to what has left it, time to leave, SIGKILL to what is left."""
        os.killpg(0, signal.SIGTERM)  # us too, which only sets a flag
        limit, asked = time.monotonic() + GRACE_S, set[int]()
        while self.reap():
            self.copy()  # lest it waits for a reader of its last words
            is_over = time.monotonic() > limit
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    if is_over:
                        os.kill(child, signal.SIGKILL)
                    elif child not in asked and os.getpgid(child) != os.getpgrp():
                        os.kill(child, signal.SIGTERM)  # once: a second may cut its leaving short
                asked.add(child)
            time.sleep(0.02)
        self.copy()


def main(log: Log, worker: int, command: list[str]) -> int:
    """The command's exit code, 128 and more where a signal ended it.

    The guard is a fork: whoever kills the children of a dead worker, as Ray does, then finds the
    parent alone, and the guard ends the command.
    """
    told, telling = os.pipe()  # closed when the guard ends
    parent, guard = os.getpid(), os.fork()
    if not guard:
        os.close(told)
        os._exit(watch(log, parent, command))
    os.close(telling)
    os.close(0)
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)  # the guard's to answer, which has our group
    while not select.select([told], [], [], LOOK_S)[0]:
        if os.getppid() != worker:
            return UNKNOWN  # a fork of the worker may hold its pipe: the guard sees that we end
    code = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    if code < 0:  # the guard was killed, and with it the command; its children are left
        os.killpg(0, signal.SIGKILL)
    return code


def watch(log: Log, parent: int, command: list[str]) -> int:
    """The guard: runs the command until it ends, or is to end."""
    told: list[int] = []  # to end: by whoever signals us
    for number in ENDS:
        signal.signal(number, lambda number, _: told.append(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # workers are deaf to Ctrl-C, helpers are not
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
    while not told and os.getppid() == parent:
        child.reap()
        if child.code is not None:
            break
        ready = {file for file, _ in poll.poll(LOOK_S * 1000)}
        if 0 in ready and not os.read(0, 1):
            break
        if child.output in ready and not child.copy():
            poll.unregister(child.output)  # it runs on without one
    child.end()
    if not IS_LINUX:
        os.killpg(0, signal.SIGKILL)  # orphans are in the group, or nobody's
    assert child.code is not None
    return 128 - child.code if child.code < 0 else child.code


def _die_with_guard() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _children() -> list[int]:
    """Our children, orphans that we inherited among them."""
    if not IS_LINUX:
        return []
    found, own = [], os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(state.rpartition(")")[2].split()[1]) == own:
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main(Log(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]))
