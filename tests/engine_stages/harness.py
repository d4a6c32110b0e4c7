"""A pool of numbers, a run of toy stages over it, and a run folder as what it means."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from clipmill.metadata.storage import Storage
from clipmill.pipeline.own_code import VARIABLE

STAGES = Path(__file__).parent  # to stand on the Python path, as a user's own folder of stages
UNITS = ("record", "journal", "step")  # the points that end a unit of work


@contextlib.contextmanager
def toy_stages() -> Iterator[None]:
    """Puts the toy stages on the path, as a user's own folder would be."""
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = os.pathsep.join(filter(None, (str(STAGES / "stages"), before)))
    try:
        yield
    finally:
        os.environ[VARIABLE] = before


def write_pool(folder: Path, sizes: Sequence[int], start: int = 0) -> Path:
    """Files of consecutive numbers, which later files go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(sizes):
        text = "".join(f"{number}\n" for number in range(start, start + size))
        (folder / f"{index}.txt").write_text(text)
        start += size
    return folder


@dataclass(frozen=True)
class Ended:
    """How a run ended, and the points that it reached, in order."""

    code: int
    output: str
    points: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def units(self) -> int:
        """Units of work that it finished."""
        return sum(point.split()[0] in UNITS for point in self.points)

    @property
    def kinds(self) -> set[str]:
        """The kinds of point that it reached."""
        return {point.split()[0] for point in self.points}


def environment(faults: Path, fault: str, scope: str = "group") -> dict[str, str]:
    """That of a run which dies at a point, and leaves the points it reached in a folder."""
    faults.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        VARIABLE: str(STAGES / "stages"),
        "CLIPMILL_FAULT": fault,
        "CLIPMILL_FAULT_DIR": str(faults),
        "CLIPMILL_FAULT_SCOPE": scope,
    }


def run_arguments(recipe: Path, out: str, workers: int, *more: str) -> list[str]:
    """Those of `clipmill`."""
    return ["run", str(recipe), "--out", out, "--workers", str(workers), *more]


def clipmill_run(
    recipe: Path,
    out: object,
    faults: Path,
    *more: str,
    fault: str = "any:0",
    scope: str = "group",
    workers: int = 0,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Ended:
    """`clipmill run` in a process group of its own, where a kill hits nobody else."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "clipmill.pipeline.cli",
            *run_arguments(recipe, str(out), workers, *more),
        ],
        env={**environment(faults, fault, scope), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=timeout_s,
        check=False,
    )
    return Ended(done.returncode, done.stdout, points_of(faults))


def points_of(faults: Path) -> tuple[str, ...]:
    """The points that a run left in its folder of faults, in the order they were reached."""
    texts = (path.read_text() for path in sorted(faults.iterdir()))
    return tuple(text for text in texts if text)  # one was killed before it wrote the name


def meaning(folder: Storage) -> dict[str, Any]:
    """Every object of a run folder by name, without what a clock or a retry decides.

    Whatever a kill left lying is in it under its name, so an undisturbed run doesn't equal it.
    """
    selector = fs.FileSelector(folder.path, recursive=True)
    infos = sorted(folder.fs.get_file_info(selector), key=lambda info: info.path)
    found: dict[str, Any] = {}
    for info in infos:
        name = info.path.removeprefix(folder.path).lstrip("/")
        if info.type != fs.FileType.File or name == "live.json":
            continue
        data = folder.read(name)
        if name.startswith("sessions/") or "/log/" in name:  # a killed run leaves none; rates
            continue
        if name.startswith("recipes/"):  # named by the time
            found.setdefault("recipes", []).append(data.decode("utf-8", "replace"))
        elif name.endswith("records.parquet") and (table := _table(data)) is not None:
            clocks = ["size", "mtime_ns", "seconds", "attempts"]
            found[name] = table.drop_columns(clocks).to_pylist()
        elif name.endswith(".json") and (value := _parsed(data)) is not None:
            found[name] = _timeless(value)
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _table(data: bytes) -> pa.Table | None:
    """None of what is no Parquet: damage."""
    with contextlib.suppress(OSError, pa.ArrowInvalid):
        return pq.read_table(pa.BufferReader(data))
    return None


def _parsed(data: bytes) -> Any:
    """None of what is no JSON: damage."""
    with contextlib.suppress(ValueError):
        return json.loads(data)


def _timeless(value: Any) -> Any:
    """A record without its seconds and attempts; anything else as it is."""
    if isinstance(value, Mapping):
        value = value["value"] if value.keys() == {"digest", "value"} else value
        return {k: v for k, v in value.items() if k not in ("seconds", "attempts", "compaction")}
    return value
