"""Helper processes: started by a stage beside its worker, healthy before use, ended with it."""

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

from metadata.keys import SECRET, without_keys
from pipeline.engine.guarded import end, start
from pipeline.errors import StageError

LONGEST_PAUSE_S = 0.5  # between two questions for its health
LOG_BYTES = 65_536  # of the log that are looked at
ERROR = re.compile(r"\b\w*(Error|Exception|ERROR)\b")
LINES, ERROR_LINES = 6, 4  # of the log in an error: its last, and those before that name a fault


class HelperProcess:
    """A process and the guard that ends it: when it is no longer used, and when its worker dies."""

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
        """The guard, and what ends it: called as this object or the process goes, if not before."""
        process = start(self._command, self._log, self._env)
        return process, weakref.finalize(self, _end, process, os.getpid())

    def _wait(self) -> None:
        """Until it is healthy; it is ended where that cannot be."""
        limit, pause_s = time.monotonic() + self._wait_s, 0.02
        try:
            while not self._is_well():
                if (code := self._guard.poll()) is not None:
                    raise self._failed(f"ended with {_ending(code)} before it was healthy")
                if time.monotonic() > limit:
                    raise self._failed(f"was not healthy within {self._wait_s:g} s")
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        except BaseException:
            self.stop()
            raise

    def _is_well(self) -> bool:
        with contextlib.suppress(OSError):  # nobody listens yet
            return self._is_healthy()
        return False

    def _failed(self, what: str) -> StageError:
        said = _telling(self.log())
        return StageError(
            f"it {what}{': ' if said else ', and wrote nothing'}{said}",
            self._where,
            "mend what its last lines say; too little memory ends a process without a word",
        )


def _telling(log: str) -> str:
    """The last lines of a log, after those earlier ones that name an error."""
    lines = list(dict.fromkeys(line.strip()[:300] for line in log.splitlines() if line.strip()))
    errors = [line for line in lines[:-LINES] if ERROR.search(line)][:ERROR_LINES]
    return "".join(f"\n    {line}" for line in [*errors, *lines[-LINES:]])


def _ending(code: int) -> str:
    """`exit code 1`, `SIGKILL`: of a guard, which says a signal as shells do."""
    number = -code if code < 0 else code - 128
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"exit code {code}")


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if os.getpid() == owner:  # else we are a fork of the worker, and the helper is not ours
        end(process)
