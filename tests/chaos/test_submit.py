"""`clipmill submit` to a real Ray head: the bytes of a local run, through failures and kills.

The stages are the user's own: what stands in `stages/` beside the recipe, and on their path. One of
them opens a file, and where that is a pipe it waits there until somebody kills it.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.own_code import VARIABLE
from tests.engine_stages.harness import STAGES, meaning, write_pool

pytestmark = [pytest.mark.soak, pytest.mark.timeout(180)]

TOKEN = "5f0c8d2e7b914a63" * 2  # of this head alone
RECIPE = """
stages:
  numbers: {uses: toy.numbers, path: pool, shard_rows: 12}
  square:  {uses: toy.power, from: numbers}
  moody:   {uses: toy.moody, from: numbers, script: mood.json}
  held:    {uses: mine.held, from: square, gate: gate}
  shared:  {uses: toy.shared, from: numbers}
  chosen:  {uses: select.where, from: [held, moody, shared], where: shared > 6 AND power < 900}
  uids:    {uses: export.uid_list, from: chosen}
"""
HELD = '''
"""The power again, once the gate is open."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker, location

POWER = Column("power", pa.int64(), "", "Any number.")
HELD = Column("held", pa.int64(), "", "The power.")


@dataclass(frozen=True, kw_only=True)
class Held(RowStage):
    """The power; null where that is."""

    gate: str = location()

    version = 1
    determinism = "exact"
    reads = (POWER,)
    writes = (HELD,)
    reasons = ("no_power",)

    def open(self, worker: Worker) -> RowFunction:
        return partial(held, Path(self.gate))


def held(gate: Path, batch: pa.Table) -> pa.Table:
    if 625 in batch[POWER.name].to_pylist():
        gate.read_bytes()
    reason = pc.if_else(batch[POWER.name].is_null(), "no_power", None).cast(REASON_TYPE)
    return pa.table({HELD.name: batch[POWER.name], REASON.name: reason})
'''
PROGRAMS = Path(sys.executable).parent
START = """
ray start {} --block --object-store-memory 200000000 --node-ip-address 127.0.0.1 \
  --min-worker-port 0 --max-worker-port 0 > {} 2>&1 &
read  # until the test, however it ends, closes the pipe
kill $! && wait
"""
HEAD = (
    "--head --port {} --num-cpus {} --dashboard-host 127.0.0.1 --dashboard-port {}"
    " --dashboard-agent-listen-port {} --ray-client-server-port {} --metrics-export-port {}"
)


@dataclass(frozen=True)
class Head:
    """A head that takes jobs."""

    address: str
    metrics: str  # where Prometheus would ask
    process: subprocess.Popen  # which leads the group of all its processes

    def get(self, path: str, body: dict | None = None):
        """What it answers; to a body, which is posted, as well."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        asked = urllib.request.Request(f"{self.address}/{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        try:
            return bool(self.get("api/version"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@dataclass
class User:
    """Works in a folder, with more stages on the path than stand in it."""

    head: Head
    folder: Path
    begun: list[subprocess.Popen] = field(default_factory=list)

    def begin(self, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.Popen:
        own = {"PYTHONPATH": os.getcwd(), VARIABLE: str(STAGES / "stages"), **env}
        process = subprocess.Popen(
            [sys.executable, "-m", "clipmill.pipeline.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "RAY_AUTH_TOKEN": TOKEN, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.begun.append(process)
        return process

    def submit(self, *more: str) -> subprocess.Popen:
        to = ("--out", "run", "--address", self.head.address)
        return self.begin("submit", "it.yaml", *to, *more)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A Ray of its own: ports, folder and token are shared with no other on this machine."""
    with ray_folder() as folder, ExitStack() as stack:
        yield started_head(stack, folder, 0, 2)


@contextmanager
def ray_folder() -> Iterator[Path]:
    """Sockets lie below, and a socket's path is short: /tmp, whatever pytest's folder is."""
    folder = tempfile.mkdtemp(dir="/tmp", prefix="ray")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def started_head(
    stack: ExitStack, folder: Path, port: int, cpus: int, programs: Path = PROGRAMS
) -> Head:
    """A head that answers; it ends with the stack."""
    ports = free_ports(4)
    process = started(stack, folder, "head", HEAD.format(port, cpus, *ports), programs)
    head = Head(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}/metrics", process)
    while not head.answers():
        wait(process, 0.2)
        assert process.poll() is None, (folder / "head.log").read_text()
    return head


def started(
    stack: ExitStack, folder: Path, name: str, options: str, programs: Path = PROGRAMS
) -> subprocess.Popen:
    """A node of Ray; its output is FOLDER/NAME.log."""
    process = subprocess.Popen(
        ["bash", "-c", START.format(options, folder / f"{name}.log")],
        stdin=subprocess.PIPE,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "500",
        },
        start_new_session=True,
    )
    stack.callback(end, process)
    return process


def free_ports(count: int) -> list[int]:
    """Of them, none is another's."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [port.getsockname()[1] for port in held]


def end(process: subprocess.Popen) -> None:
    """Once its pipe is closed, Ray ends itself; its group is killed if it does not."""
    assert process.stdin
    process.stdin.close()
    wait(process, 20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen, limit_s: float) -> None:
    """Until it ends, or the time is over."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)


@pytest.fixture
def user(head, tmp_path) -> Iterator[User]:
    write_pool(tmp_path / "pool", [30, 0, 25])
    (tmp_path / "it.yaml").write_text(RECIPE)
    (tmp_path / "mood.json").write_text("{}")
    (tmp_path / "gate").write_text("open")
    own = tmp_path / "stages" / "mine" / "held.py"
    own.parent.mkdir(parents=True)
    own.write_text(HELD)
    user = User(head, tmp_path)
    yield user
    for process in user.begun:
        process.kill()
        process.communicate()


def outcome(process: subprocess.Popen, limit_s: float = 120) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=limit_s)
    return process.returncode, output


def bytes_of(run: Path) -> dict:
    """All but the recipe, which names the paths that were made whole."""
    found = meaning(Storage(str(run)))
    del found["recipes"]
    return found


def times_of(run: Path) -> dict[Path, int]:
    """Of every file but what each run says of itself."""
    files = {path for path in run.rglob("*") if path.is_file()}
    own = {run / "live.json", *run.glob("sessions/*")}
    return {path: path.stat().st_mtime_ns for path in files - own}


def test_killed_and_submitted_again_a_run_has_the_bytes_of_a_local_one(user):
    run, gate = user.folder / "run", user.folder / "gate"
    at = f"numbers.path={user.folder}/pool"  # whole, as a job has it: a record names its source
    code, output = outcome(user.begin("run", "it.yaml", "--out", "local", "--set", at))
    assert code == 0, output
    expected = bytes_of(user.folder / "local")

    gate.unlink()
    os.mkfifo(gate)
    first = user.submit()
    while not list(run.glob("stages/held-*/000000.json")):
        wait(first, 0.1)
        assert first.poll() is None, outcome(first)
    code, output = outcome(user.submit())
    assert code == 2
    assert "works in this run folder" in output
    [job] = [job for job in user.head.get("api/jobs/") if job["submission_id"]]
    at = f"--out {run} --address {user.head.address}"
    assert f"clipmill submit --stop {at}" in output
    code, output = outcome(user.begin("submit", "--status", *at.split()))
    assert (code, f"{job['submission_id']} at {user.head.address}: running" in output) == (0, True)
    assert TOKEN not in json.dumps(job)

    os.kill(json.loads((run / "lock.json").read_text())["pid"], signal.SIGKILL)
    code, output = outcome(first)
    assert code == 1
    assert "held: 1 of 7 shards" in output
    assert "it died, exit code" in output
    before = times_of(run)

    gate.unlink()
    gate.write_text("open")
    code, output = outcome(user.submit())
    assert code == 0, output
    assert "numbers: found done" in output
    assert "held: done in" in output
    assert bytes_of(run) == expected
    after = times_of(run)
    kept = {path for path in before if path.suffix == ".parquet"} & after.keys()
    assert [path for path in kept if path.parent.name.startswith("held")]
    assert all(after[path] == before[path] for path in kept if path.name != "records.parquet")

    code, output = outcome(user.submit())
    assert code == 0, output
    assert "uids: found done" in output
    assert times_of(run) == after


@pytest.mark.soak(cpu_s=60)
@pytest.mark.timeout(400)  # `submit` waits two minutes for the head
def test_where_a_head_is_lost_with_its_driver_a_run_goes_on_from_another(user):
    run, gate = user.folder / "run", user.folder / "gate"
    at = f"numbers.path={user.folder}/pool"
    code, output = outcome(user.begin("run", "it.yaml", "--out", "local", "--set", at))
    assert code == 0, output
    gate.unlink()
    os.mkfifo(gate)
    with ray_folder() as folder, ExitStack() as stack:
        lost = User(started_head(stack, folder, 0, 2), user.folder, user.begun)
        first = lost.submit()
        while not list(run.glob("stages/held-*/000000.json")):
            wait(first, 0.1)
            assert first.poll() is None, outcome(first)
        os.killpg(lost.head.process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(json.loads((run / "lock.json").read_text())["pid"], signal.SIGKILL)
        code, output = outcome(first, 240)
    assert code == 1
    assert "the head does not answer any more" in output
    before = times_of(run)
    gate.unlink()
    gate.write_text("open")
    code, output = outcome(user.submit())
    assert code == 0, output
    assert "numbers: found done" in output
    assert bytes_of(run) == bytes_of(user.folder / "local")
    after = times_of(run)
    stored = [path for path in before if path.match("held-*/000000-*.parquet")]
    assert stored
    assert all(after[path] == before[path] for path in stored)


def test_a_stage_that_fails_is_heard_here_and_ends_with_1(user):
    (user.folder / "mood.json").write_text(json.dumps({"raise": [13]}))
    code, output = outcome(user.submit("--until", "moody"))
    assert code == 1
    assert "moody: 1 of 7 shards" in output
    assert "ZeroDivisionError: in a bad mood" in output


def counted(head: Head, metric: str, **tags: str) -> float:
    """A metric's value, once Ray's exporter has it."""
    asked = re.compile(rf"^ray_{metric}\{{([^}}]*)\}} (\S+)$", re.MULTILINE)
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        with urllib.request.urlopen(head.metrics, timeout=60) as answer:
            found = asked.findall(answer.read().decode())
        for said, value in found:
            if all(f'{name.lower()}="{tag}"' in said.lower() for name, tag in tags.items()):
                return float(value)
        time.sleep(0.5)
    raise AssertionError(f"no {metric} of {tags}: {found}")


def test_a_job_is_stopped_and_followed_from_another_folder_and_goes_on_when_submitted(user):
    run, gate = user.folder / "run", user.folder / "gate"
    gate.unlink()
    os.mkfifo(gate)
    at = ("--out", str(run), "--address", user.head.address)
    code, output = outcome(user.submit("--no-wait"))
    assert code == 0, output
    follower = user.begin("submit", "--logs", *at)
    while not list(run.glob("stages/held-*/000000.json")):
        wait(follower, 0.1)
        assert follower.poll() is None, outcome(follower)
    assert counted(user.head, "clipmill_rows_total", Stage="numbers") == 55
    assert counted(user.head, "clipmill_bytes_total", Stage="numbers") > 0
    assert counted(user.head, "clipmill_shards_left", Stage="held") > 0
    code, output = outcome(user.begin("submit", "--stop", *at))
    assert code == 0, output
    assert "stopped; submit again to go on" in output
    code, output = outcome(follower)
    assert code == 130, output
    assert "numbers: done in" in output

    gate.unlink()
    gate.write_text("open")
    code, output = outcome(user.submit())
    assert code == 0, output
    assert "numbers: found done" in output
    code, output = outcome(user.begin("submit", "--status", *at))
    assert code == 0, output
    assert "succeeded" in output


@pytest.mark.timeout(900)
def test_a_cluster_that_has_only_ray_installs_the_rest(user, tmp_path):
    programs = tmp_path / "bare" / "bin"
    subprocess.run([sys.executable, "-m", "venv", programs.parent], check=True)
    alone = f"ray[default]=={version('ray')}"
    subprocess.run([programs / "python", "-m", "pip", "install", "-q", alone], check=True)
    with ray_folder() as folder, ExitStack() as stack:
        user.head = started_head(stack, folder, 0, 2, programs)
        code, output = outcome(user.submit(), 300)
        assert code == 1
        assert "submit with --install" in output
        code, output = outcome(user.submit("--install"), 600)
        assert code == 0, output
    assert "uids: done" in output
    at = f"numbers.path={user.folder}/pool"
    code, output = outcome(user.begin("run", "it.yaml", "--out", "local", "--set", at))
    assert code == 0, output
    assert bytes_of(user.folder / "run") == bytes_of(user.folder / "local")


def test_machines_of_ones_own_as_the_page_has_them(user):
    """Its commands on one machine: FIRST and the port are this test's, and loopback."""
    page = (Path(__file__).parents[2] / "docs" / "ray.md").read_text("utf-8")
    lines = page.partition("**Machines of your own**")[2].split("```")[1].strip().splitlines()
    first, other, run = (re.sub(" +#.*", "", line) for line in lines)
    (port,) = free_ports(1)
    on_loopback = "--node-ip-address 127.0.0.1 --num-cpus 1 --include-dashboard false"
    with ray_folder() as folder, ExitStack() as stack:
        begun = first.removeprefix("ray start ").replace("6379", str(port))
        head = started(stack, folder, "head", f"{begun} {on_loopback}")
        there = f"127.0.0.1:{port}"
        while subprocess.run(
            [PROGRAMS / "ray", "status", "--address", there],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
            capture_output=True,
        ).returncode:
            wait(head, 0.5)
            assert head.poll() is None, (folder / "head.log").read_text()
        joined = other.removeprefix("ray start ").replace("FIRST:6379", there)
        started(stack, folder, "other", f"{joined} --num-cpus 2")
        words = run.removeprefix("clipmill ").replace("mine.yaml", "it.yaml")
        words = words.replace("/shared/run", "run").replace("auto", there)
        env = {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(folder)}
        code, output = outcome(user.begin(*words.split(), env=env))
        assert (code, "give URIs, or whole paths" in output) == (2, True), output
        names = {"numbers.path": "pool", "moody.script": "mood.json", "held.gate": "gate"}
        whole = [f"--set={key}={user.folder / name}" for key, name in names.items()]
        code, output = outcome(user.begin(*words.split(), *whole, env=env))
    assert code == 0, output
    code, output = outcome(user.begin("run", "it.yaml", "--out", "local", *whole))
    assert code == 0, output
    assert bytes_of(user.folder / "run") == bytes_of(user.folder / "local")
