"""Finds this machine's resources for workers: memory, GPUs, thread limits and import path."""

import contextlib
import os
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARES = ("Pss_Anon:", "Pss_Shmem:")  # of pages that several processes have, each its part
DRIVER_GPUS, KERNEL = Path("/proc/driver/nvidia/gpus"), Path("/proc/vmstat")


def thread_limits(cpus: float) -> dict[str, str]:
    """Returns environment variables that limit a worker's libraries to its CPUs."""
    return dict.fromkeys(THREADS, str(max(1, int(cpus))))


def import_path() -> list[str]:
    """Returns sys.path without the working folder that Python puts in front.

    A worker must not import a `numpy.py` that lies among a user's data.
    """
    is_in_front = bool(sys.path) and sys.path[0] in ("", os.getcwd())
    return sys.path[1:] if is_in_front else sys.path[:]


def memory_gb() -> float:
    """Returns memory in GB of 2**30 bytes: the machine's, or a container's lower limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _cgroup_files("memory.max", "memory.limit_in_bytes"):
        text = file.read_text(encoding="ascii").strip() if file.is_file() else ""
        limits += [int(text)] if text.isdigit() else []  # "max": no limit
    return min(limits) / 2**30


def resident_bytes(pid: int, shared_once: bool = False) -> int:
    """Returns a process's resident memory that is not backed by files; 0 if unknown.

    Its address space would mislead: CUDA and Arrow reserve a lot and use little. A page that a
    fork shares with its parent counts whole for both; with `shared_once` each gets its part. For
    that the kernel walks through all pages, some 20 ms a GB, and holds up the process meanwhile.
    """
    file, names = ("smaps_rollup", SHARES) if shared_once else ("status", ("RssAnon:", "RssShmem:"))
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended, or is another user's, or this is not Linux
        return resident_bytes(pid) if shared_once else 0
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) << 10 for words in lines if words and words[0] in names)


def family(pid: int) -> list[int]:
    """Lists a process and its descendants, without those that init has adopted."""
    found = [pid]
    for member in found:  # it grows
        with contextlib.suppress(OSError):  # it has ended, or this is not Linux
            for thread in os.listdir(f"/proc/{member}/task"):
                children = Path(f"/proc/{member}/task/{thread}/children").read_text(
                    encoding="ascii"
                )
                found += map(int, children.split())
    return found


def program(pid: int) -> str:
    """Returns a process's name in errors: `gguf_server.py (process 4711)`."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
        named = [word for word in words[:4] if word and word[0] != "-"]
        scripts = [word for word in named if word.endswith(".py")]
        return f"{Path([*scripts, *named, 'a program'][0]).name} (process {pid})"
    return f"process {pid}"


def oom_kills() -> int | None:
    """Returns how many processes the kernel ended for lack of memory; None if it does not say.

    Counts those of this process's cgroup, which its workers share; where it has none, all.
    """
    for file in [*_cgroup_files("memory.events", "memory.oom_control"), KERNEL]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            counts = dict(line.split(" ", 1) for line in file.read_text("ascii").splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def _cgroup_files(name: str, first_version: str) -> list[Path]:
    """Lists the files of this name of this process's cgroup and the cgroups above it."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = CGROUPS / controllers
            own, file = top / path.lstrip("/"), first_version if controllers else name
            files += [folder / file for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return files


def gpus() -> tuple[str, ...]:
    """Lists the GPUs that workers may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0
        return tuple(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")]
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return tuple(names[:end])  # CUDA ignores names that follow an invalid one


def process(pid: int) -> tuple[str, str]:
    """Returns a process's state and start in ticks since boot; empty strings without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")  # a name may be any bytes
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()
    return fields[0], fields[19]
