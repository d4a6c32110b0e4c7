"""Helper processes that a stage starts beside its worker, and that end with the worker."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipmill.metadata.keys import SECRET, without_keys
from clipmill.pipeline.engine.guard import end, start
from clipmill.pipeline.errors import StageError

LONGEST_PAUSE_S = 0.5  # between two health checks
LOG_BYTES = 65_536  # read from the end of the log
ERROR = re.compile(r"\b\w*(Error|Exception|ERROR)\b")
LINES, ERROR_LINES = 6, 4  # of the log in an error: its last lines, and earlier ones with errors
# Messages of Python and torch about an import that fails.
UNLOADED = re.compile(
    r"\b(?:ImportError|ModuleNotFoundError|OSError): (?:Could not load this library: (\S+)"
    r"|No module named '([\w.]+)'|cannot import name .+ from '([\w.]+)'|(\S+?\.so[.\d]*): )"
)


class HelperProcess:
    """A process under a guard that ends it when this object is dropped or the worker dies."""

    def __init__(
        self,
        stage: str,
        scratch: Path,
        command: Sequence[str],
        *,
        is_healthy: Callable[[], bool],
        wait_s: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._where = f"stage '{stage}', its helper {' '.join(command[:4])}"
        self._log = scratch / f"helper-{secrets.token_hex(4)}.log"
        self._command, self._env = list(command), dict(env or {})
        self._is_healthy, self._wait_s = is_healthy, wait_s
        self._lock = threading.RLock()
        self._guard, self._end = self._start()
        self._wait()

    def is_alive(self) -> bool:
        return self._guard.poll() is None

    def restart(self) -> None:
        with self._lock:
            self.stop()
            self._guard, self._end = self._start()
            self._wait()

    def stop(self) -> None:
        self._end()

    def log(self) -> str:
        text = ""
        for path in (self._log.with_suffix(".old"), self._log):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LOG_BYTES))
                text += file.read().decode(errors="replace")
        for name, value in self._env.items():
            if value and SECRET.search(name):
                text = text.replace(value, "…")
        return without_keys(text[-LOG_BYTES:])

    def _start(self) -> tuple["subprocess.Popen[bytes]", Callable[[], object]]:
        """Starts the guard; returns it with its finalizer, called at the latest when we exit."""
        process = start(self._command, self._log, self._env)
        return process, weakref.finalize(self, _end, process, os.getpid())

    def _wait(self) -> None:
        """Waits until the process is healthy; ends it and raises StageError if it fails to be."""
        limit, pause_s = time.monotonic() + self._wait_s, 0.02
        try:
            while True:
                with contextlib.suppress(OSError):  # not listening yet
                    if self._is_healthy():
                        return
                if (code := self._guard.poll()) is not None:
                    raise self._failed(f"ended with {_ending(code)} before it was healthy")
                if time.monotonic() > limit:
                    raise self._failed(f"was not healthy within {self._wait_s:g} s")
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        except BaseException:
            self.stop()
            raise

    def _failed(self, what: str) -> StageError:
        log = self.log()
        if lacks := cannot_load(log, self._command[0]):
            found, do = lacks
            last = log.strip().splitlines()[-1][:300]
            if not UNLOADED.search(last):  # it may have gone on, and ended for another reason
                found += f"; its last line: {last}"
            return StageError(f"it {what}: it {found}", self._where, do)
        lines = _last_lines(log)
        return StageError(
            f"it {what}{': ' if lines else ', and wrote nothing'}{lines}",
            self._where,
            "mend what its last lines say; too little memory ends a process without a word",
        )


def cannot_load(log: str, python: str) -> tuple[str, str] | None:
    """Returns `cannot load NAME` and what to do; None if the log names no missing import.

    NAME is the last library or module named: earlier ones are often optional.
    """
    names = UNLOADED.findall(log)
    if not names:
        return None
    name = "".join(names[-1])
    inside = name.partition("/site-packages/")[2] or name.rpartition("/")[2]
    package = re.split(r"[/.]", inside)[0]
    return (
        f"cannot load {name}",
        f"mend {package} there, or take it out, with `{python} -m pip`: it is missing, or built"
        " for another machine or another torch; `clipmill doctor --model` tries the import again",
    )


def _last_lines(log: str) -> str:
    """Returns the last lines of a log, preceded by earlier lines that name an error."""
    lines = list(dict.fromkeys(line.strip()[:300] for line in log.splitlines() if line.strip()))
    errors = [line for line in lines[:-LINES] if ERROR.search(line)][:ERROR_LINES]
    return "".join(f"\n    {line}" for line in [*errors, *lines[-LINES:]])


def _ending(code: int) -> str:
    """Returns a guard's exit code in words: `exit code 1`, `SIGKILL` (137, as in shells)."""
    number = -code if code < 0 else code - 128
    names = {known.value: known.name for known in signal.Signals}
    return names.get(number, f"exit code {code}")


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if os.getpid() == owner:  # a fork of the worker must not end the helper
        end(process)
