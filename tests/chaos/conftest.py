"""A pool, a recipe of every kind of stage, and runs of it that die on request."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from tests.chaos.flaky import Proxy
from tests.engine_stages.harness import (
    Ended,
    environment,
    meaning,
    points_of,
    run_arguments,
    write_pool,
)
from tests.ray_head import ray_head as ray_head
from tests.ray_head import ray_heads as ray_heads

RECIPE = Path(__file__).parent / "kill.yaml"


@dataclass
class Nursery:
    """Runs of a recipe, forked from one process: see nursery.py."""

    process: "subprocess.Popen[str]"
    folder: Path
    recipe: Path
    settings: tuple[str, ...]
    born: int = field(default=0)

    def run(self, out: object, *more: str, fault: str = "any:0", workers: int = 0) -> Ended:
        """One run; with `any:0` nothing kills it, and its points are counted."""
        more = (*(text for setting in self.settings for text in ("--set", setting)), *more)
        return self.ask(*run_arguments(self.recipe, str(out), workers, *more), fault=fault)

    def ask(self, *arguments: str, fault: str = "any:0") -> Ended:
        """One `clipmill` with these arguments."""
        self.born += 1
        faults, output = self.folder / f"{self.born}-faults", self.folder / f"{self.born}.txt"
        task = {
            "arguments": arguments,
            "environment": environment(faults, fault),
            "output": str(output),
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Ended(code, output.read_text(), points_of(faults))


@pytest.fixture(scope="session")
def recipe() -> Path:
    return RECIPE


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Path:
    """Eleven numbers in two files: two shards."""
    return write_pool(tmp_path_factory.mktemp("pool"), [7, 4])


@pytest.fixture(scope="session")
def nursery(tmp_path_factory, pool) -> Iterator[Nursery]:
    with nursery_of(RECIPE, tmp_path_factory.mktemp("nursery"), f"numbers.path={pool}") as made:
        yield made


@pytest.fixture(scope="module")
def calm(runs, tmp_path_factory):
    """How one of a module's `runs` ends that nothing disturbs, and what is there then."""
    folder = tmp_path_factory.mktemp("calm")
    ended = runs.run(folder)
    assert ended.code == 0, ended.output
    return ended, meaning(Storage(str(folder)))


@contextmanager
def nursery_of(
    recipe: Path, folder: Path, *settings: str, modules: tuple[str, ...] = ()
) -> Iterator[Nursery]:
    """A nursery of runs of a recipe, with these settings in each; it has imported the modules."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.nursery", str(recipe), *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment(folder, "any:0"), "TMPDIR": str(folder)},  # the killed don't tidy up
        text=True,
    )
    with started:
        yield Nursery(started, folder, recipe, settings)
        assert started.stdin
        started.stdin.close()


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3-compatible server on loopback."""

    port: int

    def uri(self, name: str) -> str:
        endpoint = f"endpoint_override=127.0.0.1:{self.port}&scheme=http"
        return f"s3://KEY:SECRET@bucket/{name}?{endpoint}&allow_bucket_creation=true"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory) -> Iterator[Bucket]:
    """The server is moto's; it says on its output where it listens."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    made = Bucket(port)
    storage = Storage(made.uri(""))
    try:
        storage.fs.create_dir("bucket")  # asks again until the server is up
        yield made
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def proxy(bucket) -> Iterator[Proxy]:
    """The same bucket, through a proxy that fails as its `troubles` say."""
    made = Proxy(f"http://127.0.0.1:{bucket.port}")
    yield made
    made.close()
