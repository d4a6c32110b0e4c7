"""Connects to a cluster, or starts a local Ray on loopback with a token."""

import atexit
import contextlib
import logging
import os
import re
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

OBJECT_STORE_BYTES = 512 * 2**20  # for names, not rows; Ray's default is a third of the memory
VERSION = re.compile(r"^ +(Ray|Python): (\S+)", re.MULTILINE)  # in Ray's words on a mismatch
ANSWER_S = 10.0  # until a cluster's first answer
VITAL = (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET)


class Session:
    """A connection to a cluster, or to a local Ray (no address) that ends with it.

    A local Ray has `cpus` CPUs, by default the machine's, and the machine's memory and GPUs. If
    this process is connected to a Ray already, that one is used and left running.
    """

    def __init__(self, address: str | None, cpus: int | None) -> None:
        self.is_local = address is None
        self._is_ours = not ray.is_initialized()
        self._environment = contextlib.ExitStack()  # variables for a Ray that it starts
        if not self._is_ours:
            return
        options: dict[str, Any] = {}
        if self.is_local:
            self._environment.enter_context(_private())
            options = {
                "num_cpus": cpus or os.cpu_count(),
                "num_gpus": len(machine.gpus()),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_memory": int(machine.memory_gb() * 2**30),
            }
        _init(address, options)
        auto_init_hook.enable_auto_connect = False  # so that a late call starts no other Ray

    def lost(self) -> str | None:
        """Returns the vital process of a local Ray that has died; None if none has."""
        dead = _node().dead_processes() if self.is_local and ray.is_initialized() else []
        return next((name for name, _ in dead if name in VITAL), None)

    def check_alive(self) -> None:
        """Raises StageError if a vital process died; Ray would end this process a minute later."""
        if name := self.lost():
            raise StageError(
                found=f"{name} of the local Ray has died",
                where=f"logs in {_node().get_session_dir_path()}/logs",
                do="look for too little memory, then run the same command again",
            )

    def is_usable(self) -> bool:
        """Returns whether Ray is connected and alive."""
        return ray.is_initialized() and not self.lost()

    def close(self) -> None:
        if self._is_ours and self.lost():
            _node().kill_all_processes(check_alive=False)
            atexit.register(_end_at_once)
        elif self._is_ours:
            ray.shutdown()
        self._environment.close()


def _init(address: str | None, options: Mapping[str, Any]) -> None:
    """Starts or connects to Ray; raises RecipeError early, where ray.init would try for minutes."""
    # Ray prints events of its nodes on standard output; our errors say what matters.
    worker.print_to_stdstream = lambda *_, **__: None
    job = JobConfig()
    job._py_driver_sys_path = _NoFolders()
    try:
        if address:
            is_named = address != "auto"
            _check_grpc(
                address if is_named else services.canonicalize_bootstrap_address_or_die(address)
            )
        ray.init(
            address=address or "local",
            namespace="clipmill",
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=job,
            **options,
        )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        versions = [" ".join(found) for found in VERSION.findall(str(error))]
        if len(versions) == 4:  # of the cluster, then of this process
            there, here = (" and ".join(pair) for pair in (versions[:2], versions[2:]))
            raise RecipeError(
                found=f"the cluster has {there}, here is {here}",
                where=f"--address {address}",
                do="use the cluster's versions here, or `clipmill submit`, which needs neither",
            ) from None
        raise RecipeError(
            found=f"no Ray {'answers' if address else 'starts'}: {first_line(error)}",
            where=f"--address {address}" if address else "--executor ray",
            do="give HOST:6379, where HOST is the head, or `auto` on one of its machines"
            if address
            else "look into /tmp/ray/session_latest/logs, or run without --executor",
        ) from None


class _NoFolders(list[str]):
    """Stays empty when Ray adds this process's folders, from which workers would import."""

    def extend(self, _: Iterable[str]) -> None:
        """Adds nothing."""


def _check_grpc(address: str) -> None:
    """Raises OSError unless a gRPC server answers there, with HTTP/2's SETTINGS frame."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if line.recv(9, socket.MSG_WAITALL)[3:4] != b"\x04":
            raise ConnectionError("what listens there is no Ray")


def _end_at_once() -> None:
    """Exits with code 1; Ray's own exit handler would wait for a dead process, or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _node() -> Any:
    return worker._global_node


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Makes a Ray started within listen on loopback, and require a token that only we have."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray use loopback, on Linux too
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
    Config.initialize("")  # else Ray reads its environment only once, at import
    AuthenticationTokenLoader.instance().reset_cache()


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
