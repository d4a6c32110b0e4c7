"""What this machine has for workers: memory, GPUs, threads of libraries, and where Python looks."""

import os
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")


def thread_limits(cpus: float) -> dict[str, str]:
    """The variables that keep a worker's libraries to its CPUs."""
    return dict.fromkeys(THREADS, str(max(1, int(cpus))))


def import_path() -> list[str]:
    """Where this process imports from, without the working folder that Python puts in front.

    A `numpy.py` among somebody's data is no part of what a worker runs.
    """
    is_in_front = bool(sys.path) and sys.path[0] in ("", os.getcwd())
    return sys.path[1:] if is_in_front else sys.path[:]


def memory_gb() -> float:
    """Memory in GB of 2**30 bytes: the machine's, or less where a container's limit says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files():
        text = file.read_text(encoding="ascii").strip() if file.is_file() else ""
        limits += [int(text)] if text.isdigit() else []  # "max": no limit
    return min(limits) / 2**30


def resident_bytes(pid: int) -> int:
    """What a process holds in memory and no file does; 0 where that is not known.

    Not its address space, of which CUDA and Arrow reserve a lot and use little.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended, or this is not Linux
        return 0
    words = (line.split() for line in text.splitlines())
    return sum(int(it[1]) << 10 for it in words if it and it[0] in ("RssAnon:", "RssShmem:"))


def _limit_files() -> list[Path]:
    """Where the memory limits of this process's cgroup and of those above it stand."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = CGROUPS / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = top / path.lstrip("/")
            found += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return found


def gpus() -> tuple[str, ...]:
    """The GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0
        return tuple(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")]
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return tuple(names[:end])  # as CUDA reads it: what follows an invalid name is not visible


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal, as Linux tells it; False where nothing tells."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return False
    return state[:1] in (["T"], ["t"])
