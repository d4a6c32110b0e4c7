"""A Ray to work on: one of this run's own, on loopback and with a token, or a cluster."""

import atexit
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray._private import auto_init_hook, ray_constants, services, worker
from ray._raylet import (  # type: ignore[attr-defined]  # compiled
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import RayError
from ray.job_config import JobConfig

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.executors import machine

OBJECT_STORE_BYTES = 512 * 2**20  # names travel, not rows; Ray's default is a third of the memory
ANSWER_S = 10.0  # of a cluster that is asked for the first time
VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)


class Session:
    """The connection to a cluster, or to a local Ray (no address), which ends with it.

    A local Ray has `cpus` CPUs, else the machine's, and the machine's memory and GPUs. A Ray that
    this process is connected to already is left as it is.
    """

    def __init__(self, address: str | None, cpus: int | None) -> None:
        self.is_local = address is None
        self._connected = not ray.is_initialized()
        self._environment = contextlib.ExitStack()  # of a Ray that it starts
        if not self._connected:
            return
        new: dict[str, Any] = {}
        if self.is_local:
            self._environment.enter_context(_private())
            new = {
                "num_cpus": cpus or os.cpu_count(),
                "num_gpus": len(machine.gpus()),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_memory": int(machine.memory_gb() * 2**30),
            }
        _init(address, new)
        auto_init_hook.enable_auto_connect = False  # or a late call would start another Ray

    def lost(self) -> str | None:
        """The process of a local Ray without which it is none, where that has died."""
        dead = _node().dead_processes() if self.is_local and ray.is_initialized() else []
        return next((name for name, _ in dead if name in VITAL), None)

    def check_alive(self) -> None:
        """Ray waits a minute for such a process, and ends this one then."""
        if name := self.lost():
            raise StageError(
                found=f"{name} of the local Ray has died",
                where=f"logs in {_node().get_session_dir_path()}/logs",
                do="look for too little memory, then run the same command again",
            )

    def is_usable(self) -> bool:
        """Whether asking Ray for an end would neither wait for what has died nor start another."""
        return ray.is_initialized() and not self.lost()

    def close(self) -> None:
        if self.lost():
            _node().kill_all_processes(check_alive=False)
            atexit.register(_end_at_once)
        elif self._connected:
            ray.shutdown()
        self._environment.close()


def _init(address: str | None, new: Mapping[str, Any]) -> None:
    """RecipeError where no Ray starts, or answers: its own init would ask for minutes."""
    # Ray prints what befalls its nodes, on standard output: our errors say what matters of it.
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        if address:
            is_named = address != "auto"
            _hear(address if is_named else services.canonicalize_bootstrap_address_or_die(address))
        ray.init(
            address=address or "local",
            namespace="clipmill",
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=_job(),
            **new,
        )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise RecipeError(
            found=f"no Ray {'answers' if address else 'starts'}: {first_line(error)}",
            where=f"--address {address}" if address else "--executor ray",
            do="give HOST:6379, where HOST is the head, or `auto` on one of its machines"
            if address
            else "look into /tmp/ray/session_latest/logs, or run without --executor",
        ) from None


class _Nowhere(list[str]):
    """The folders that Ray puts on a worker's path: none of those that it would add."""

    def extend(self, _: Iterable[str]) -> None:
        """Leaves out the script's folder and the working folder."""


def _job() -> JobConfig:
    job = JobConfig()
    job._py_driver_sys_path = _Nowhere()
    return job


def _hear(address: str) -> None:
    """OSError where nobody at the address greets as gRPC does: by HTTP/2's frame of settings."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if line.recv(9, socket.MSG_WAITALL)[3:4] != b"\x04":
            raise ConnectionError("what listens there is no Ray")


def _end_at_once() -> None:
    """Ends this process as failed: Ray's own way out waits for what has died, or crashes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _node() -> Any:
    return worker._global_node


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """A Ray that is started inside listens on loopback, to those who have its token: this process
    and its children."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so named since Ray keeps to loopback there
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in own}
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    try:
        _set_environment(own)
        ray_constants.ENABLE_RAY_CLUSTER = False
        yield
    finally:
        _set_environment(before)
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")  # Ray reads its environment once, as it is imported
    AuthenticationTokenLoader.instance().reset_cache()


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
