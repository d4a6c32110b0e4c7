"""One Ray head for all tests of a process that only need one: runs reach it by its address.

It is a Ray as a run starts its own, on loopback and with a token. Drivers and workers that are
killed leave it as it is. Tests whose subject is a head start one themselves.

    from tests.ray_head import ray_head, ray_heads      both, into the file or its conftest.py
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

CPUS = 3  # as many stages meet in a test
IDLE_S = 30.0  # then it ends: at rest it takes a CPU second in fifteen
# Its token, and that it keeps to loopback: a driver would look for it at the machine's address.
NEEDED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@dataclass(frozen=True)
class RayHead:
    """Where a run finds it, and what the run's environment must have."""

    address: str
    environment: dict[str, str]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of `clipmill run`."""
        return "--executor", "ray", "--address", self.address


class Heads:
    """The head that is there, if any: it is started when it is wanted, and ends at rest."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.head: RayHead | None = None
        self.rest: threading.Timer | None = None

    def take(self) -> RayHead:
        self._stay()
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray_head"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self.process.stdout
            self.head = RayHead(**json.loads(self.process.stdout.readline()))
        assert self.head
        return self.head

    def give_back(self) -> None:
        self.rest = threading.Timer(IDLE_S, self._end)
        self.rest.start()

    def close(self) -> None:
        self._stay()
        self._end()

    def _stay(self) -> None:
        """It is not to end by itself, or has done so by now."""
        if self.rest:
            self.rest.cancel()
            self.rest.join()

    def _end(self) -> None:
        if self.process:
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="session")
def ray_heads() -> Iterator[Heads]:
    heads = Heads()
    yield heads
    heads.close()


@pytest.fixture
def ray_head(ray_heads: Heads) -> Iterator[RayHead]:
    yield ray_heads.take()
    ray_heads.give_back()


def serve() -> None:
    """A head that says where it is, and ends with its standard input."""
    import ray

    from clipmill.pipeline.executors.ray_session import Session

    session = Session(None, CPUS)
    environment = {name: os.environ[name] for name in NEEDED}
    address = ray.get_runtime_context().gcs_address
    print(json.dumps({"address": address, "environment": environment}), flush=True)
    sys.stdin.read()
    session.close()


if __name__ == "__main__":
    serve()
