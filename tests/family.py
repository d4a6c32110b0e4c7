"""A helper with children, one of which leaves its group: who of them is left."""

import time
from collections.abc import Iterable
from pathlib import Path

# Writes its own id and those of its children, then waits; `$0` is where.
FAMILY = "setsid sleep 600 & one=$!; sleep 600 & echo $$ $one $! > $0.new; mv $0.new $0; wait"


def family(pids: Path) -> list[str]:
    """The command of a helper that is healthy once the file is there."""
    return ["sh", "-c", FAMILY, str(pids)]


def members(pids: Path) -> list[int]:
    return list(map(int, pids.read_text().split()))


def living(pids: Iterable[int]) -> list[int]:
    """Those of them that have not ended; a zombie has."""
    left = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            left.append(pid)
    return left


def left_after(pids: Iterable[int], limit_s: float) -> list[int]:
    """Those that live on so long."""
    end = time.monotonic() + limit_s
    while (left := living(pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def serving(script: str) -> list[int]:
    """The processes that run a server's file, their guards included; the server is the last."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [int(entry.name)] if script.encode() in command else []
    return sorted(found)
