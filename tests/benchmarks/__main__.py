"""Every ratio in this folder, after the machine's name: python -m tests.benchmarks [NAME ...]"""

import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

HELPERS = ("__main__", "side_by_side", "toy", "gpu")  # gpu: by its name, where there is one
LIBRARIES = ("numpy", "pyarrow", "polars", "ray")


def main() -> int:
    """Each benchmark in a process of its own: no one's memory or imports help another."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    chosen = sys.argv[1:] or [name for name in names if name not in HELPERS]
    print(machine(), flush=True)
    failed = []
    for name in chosen:
        print(f"\n{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"]).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return bool(failed)


def machine() -> str:
    """Processor, cores, memory, and the versions that the figures belong to."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{processor()}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()},"
        f" load {os.getloadavg()[0]:.1f}, {date.today()}\n"
        f"Python {platform.python_version()}, {libraries}"
    )


def processor() -> str:
    """The model's name where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
