"""`clipmill submit`: sends a run to a Ray cluster as a job; follows, asks after and stops it.

It sends one zip: the recipe, your own stages as `own_code` read them, and the files of clipmill in
OURS, so that the cluster runs what was planned here. Packages and keys are the cluster's own.
Anybody who reaches a dashboard can read every job's command and environment, so URIs with keys are
refused.
"""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import socket
import sys
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.metadata.keys import redacted, without_keys
from clipmill.metadata.storage import local_path
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.jobs import CONNECT_S, ENDED, NO_CONTACT, Head, opened
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.requirements import extras_of, required
from clipmill.pipeline.stage import settings_fields

LOST_S = 120.0  # a followed head that is silent this long is given up
POLL_S = 1.0
STOP_S = 60.0  # a driver that is stopped ends what its workers have in hand
POOLS = "pipeline/pools"  # makes test pools: no run needs it
OURS = (  # the only files of clipmill that are sent
    *("__init__.py", "metadata/**/*.py", "pipeline/**/*.py", "stages/**/*.py"),
    *("pipeline/recipes/*.yaml", "pipeline/own_data/*.j2", "pipeline/report/templates/*.html"),
    *("pipeline/report/templates/*.css", "pipeline/explore/page/*.css"),
    *("pipeline/explore/page/*.html", "pipeline/explore/page/*.js", "pipeline/explore/page/*.svg"),
    *("stages/annotate/*.json", "stages/annotate/*.yaml", "stages/ops/tasks/datacomp_38.json"),
    *("stages/*/*/*.yaml", "stages/score/phrases/*.txt", "stages/models/vllm*.txt"),
)
MACHINES = "nodes?view=hostNameList"


@dataclass(frozen=True)
class Job:
    """A run on a cluster: the job's id, the head's address and the run folder."""

    id: str
    address: str
    out: str

    def __str__(self) -> str:
        return f"job {self.id} at {redacted(self.address)}"

    @property
    def how_to(self) -> str:
        """Returns the commands to follow and to stop it."""
        job = f"--out {shlex.quote(self.out)} --address {redacted(self.address)}"
        return (
            f"  follow it: clipmill submit --logs {job}\n  stop it:   clipmill submit --stop {job}"
        )


def send(
    plan: Plan,
    sent: dict[str, bytes],
    *,
    address: str,
    out: str,
    until: str | None = None,
    retry: Sequence[str] = (),
    keep_going: bool = False,
    workers: int | None = None,
    install: bool = False,
) -> Job:
    """Submits the job with the files of `contents`; RecipeError if that fails, without a job.

    `install` has Ray install what the recipe needs, for this job, on each machine that works.
    """
    more = [f"--set={override}" for override in plan.recipe.overrides]
    more += [f"--until={until}"] if until else []
    more += [f"--retry={reason}" for reason in retry]
    more += ["--keep-going"] if keep_going else []
    more += [f"--workers={workers}"] if workers is not None else []
    packages = requirements(plan, out) if install else []
    return asyncio.run(_send(plan, address, out, more, packed(sent), packages))


async def _send(
    plan: Plan, address: str, out: str, more: list[str], package: bytes, packages: list[str]
) -> Job:
    async with _reached(address) as head:
        out, absolute = _paths(plan, out, await _is_all_here(head))
        await _refuse_running(head, out)
        recipe = Path(plan.recipe.path)
        command = ["python", "-m", "clipmill.pipeline.cli"] if packages else ["clipmill"]
        command += ["run", f"recipe/{recipe.name}", "--out", out]
        command += ["--executor=ray", "--address=auto", *more, *absolute]
        word = re.sub("[^A-Za-z0-9]+", "-", recipe.stem)
        job = Job(f"clipmill-{word}-{uuid.uuid4().hex[:8]}", head.address, out)
        environment: dict[str, Any] = {"working_dir": await _upload(head, package)}
        body = {
            "submission_id": job.id,
            "entrypoint": shlex.join(command),
            "runtime_env": environment | ({"pip": packages} if packages else {}),
            "metadata": {"clipmill_out": out},
        }
        await head.fetch("api/jobs/", "POST", json=body)
        return job


@contextlib.asynccontextmanager
async def _reached(address: str) -> AsyncIterator[Head]:
    """Opens the head at an address; RecipeError where none answers."""
    if not address.startswith(("http://", "https://")) or has_keys(address):
        raise RecipeError(
            found=f"'{redacted(address)}' is no address of a dashboard",
            where="--address",
            do="give http://HOST:8265, where HOST is the head",
        )
    try:
        async with opened(address.rstrip("/")) as head:
            async with asyncio.timeout(CONNECT_S):
                await head.fetch("api/version")
            yield head
    except NO_CONTACT as error:
        raise RecipeError(
            found=f"no Ray head answers: {_words(error)}",
            where=f"--address {redacted(address)}",
            do="check the address, which is the dashboard's; a head has one where ray[default] is",
        ) from None


# A job that was sent


async def find(address: str, out: str) -> Job:
    """Returns the last job that was sent for a run folder; RecipeError if there is none."""
    async with _reached(address) as head:
        path = local_path(out)  # where all of a cluster is this machine, it has the whole path
        names = {out, os.path.abspath(path.expanduser())} if path is not None else {out}
        mine = [job for job in await head.fetch("api/jobs/") if _out_of(job) in names]
        if not mine:
            raise RecipeError(
                found="no job of this run folder",
                where=f"--out {redacted(out)} --address {redacted(address)}",
                do="give --out as it was submitted; a head that began anew knows of no job",
            )
        last = max(mine, key=lambda job: job.get("start_time") or 0)
        return Job(last["submission_id"], head.address, _out_of(last))


def _out_of(job: dict[str, Any]) -> str:
    return str((job.get("metadata") or {}).get("clipmill_out", ""))


def status(job: Job) -> int:
    """Prints how a job is; returns 0, or the exit code of a run that has ended."""
    found = asyncio.run(_ask(job, f"api/jobs/{job.id}"))
    times = [found.get(name) for name in ("start_time", "end_time")]  # in ms
    since = [f"{time.strftime('%F %T', time.gmtime(ms / 1000))} UTC" for ms in times if ms]
    print(f"{job}: {found['status'].lower()}, {' to '.join(since) or 'not begun'}")
    return _exit_code(job, found) if found["status"] in ENDED else 0


def stop(job: Job) -> int:
    """Stops a job and waits for its end; returns 0, or 1 if it doesn't end in time."""
    asyncio.run(_ask(job, f"api/jobs/{job.id}/stop", "POST"))
    deadline_s = time.monotonic() + STOP_S
    while (ended := asyncio.run(_ask(job, f"api/jobs/{job.id}"))["status"]) not in ENDED:
        if time.monotonic() > deadline_s:
            do = "ask again with --status; its driver ends what it has in hand"
            raise ClipmillError(f"it works on after {STOP_S:.0f} s", str(job), do)
        time.sleep(POLL_S)
    print(f"{job}: {ended.lower()}" + ("; submit again to go on" if ended == "STOPPED" else ""))
    return 0


async def _ask(job: Job, path: str, method: str = "GET") -> Any:
    async with _reached(job.address) as head:
        return await head.fetch(path, method)


async def follow(job: Job) -> int:
    """Prints the job's output until it ends; returns the exit code of its run."""
    printed, heard_s = 0, time.monotonic()
    async with opened(job.address) as head:
        while True:
            try:
                passed = 0  # a new connection sends the log from its start
                async for text in head.log(job.id):
                    print(text[max(0, printed - passed) :], end="", flush=True)
                    passed += len(text)
                    printed, heard_s = max(printed, passed), time.monotonic()
                ended = await head.fetch(f"api/jobs/{job.id}")
                if ended["status"] in ENDED:
                    whole = await head.fetch(f"api/jobs/{job.id}/logs")
                    print(whole["logs"][printed:], end="", flush=True)
                    return _exit_code(job, ended)
                heard_s = time.monotonic()
            except (RecipeError, *NO_CONTACT) as error:  # a head may come back
                if time.monotonic() - heard_s > LOST_S:
                    raise ClipmillError(
                        found=f"the head does not answer any more: {_words(error)}",
                        where=str(job),
                        do="submit again when it does; a job that still runs is found",
                    ) from None
            await asyncio.sleep(POLL_S)


def _exit_code(job: Job, ended: dict[str, Any]) -> int:
    """Returns the exit code of the job's `clipmill run`; ClipmillError if it has none."""
    code = ended.get("driver_exit_code")
    if ended["status"] == "SUCCEEDED":
        return 0
    if ended["status"] == "STOPPED":
        print(f"{job} was stopped; submit again to go on", file=sys.stderr)
        return 130
    if code in (1, 2, 130):
        return int(code)
    if code == 127:
        do = "install it on all of the cluster, or submit with --install"
        raise ClipmillError("no `clipmill` there", str(job), do)
    how = f"it did not start: {ended['message']}" if code is None else f"it died, exit code {code}"
    raise ClipmillError(how, str(job), "submit again to go on; what is finished is kept")


# What is refused


def check_keys(plan: Plan, out: str) -> None:
    """Raises RecipeError if a URI of the recipe, an override or `out` holds keys."""
    texts = [("--out", out)]
    for name, keys in plan.recipe.stages.items():
        texts += [(plan.recipe.where(name), text) for text in _strings(keys)]
    # Overrides, too: a later one may hide an earlier one in the plan.
    texts += [("--set", override) for override in plan.recipe.overrides]
    for where, text in texts:
        if has_keys(text):
            raise RecipeError(
                found=f"keys in {redacted(text)}",
                where=where,
                do="leave them out, for whoever reaches the dashboard could read them; the machines"
                " of the cluster have them in their environment: AWS_ACCESS_KEY_ID, …",
            )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _strings(below)


def has_keys(text: str) -> bool:
    """Returns whether a URI in the text has a password, or a secret in its query."""
    return without_keys(text) != text


async def _is_all_here(head: Head) -> bool:
    """Returns whether the cluster is this machine alone; loopback may be a tunnel's end."""
    async with asyncio.timeout(CONNECT_S):
        while not (names := (await head.fetch(MACHINES))["data"]["hostNameList"]):
            await asyncio.sleep(POLL_S)  # a head that has just started does not list itself yet
    return set(names) == {socket.gethostname()}


def _paths(plan: Plan, out: str, is_here: bool) -> tuple[str, list[str]]:
    """Returns the run folder and overrides with absolute paths: a job has another working folder.

    Raises RecipeError for a relative path if the cluster has other machines.
    """
    places = [("--out", "", out)]  # where it is said, key of its `--set` (none for --out), path
    for name, planned in plan.stages.items():
        for field in settings_fields(planned.stage):
            value = getattr(planned.stage, field.name)
            is_location = not field.metadata.get("fingerprint", True)
            if is_location and value and isinstance(value, str) and os.path.exists(value):
                places.append((plan.recipe.where(name, field.name), f"{name}.{field.name}", value))
    whole: dict[str, str] = {}
    for where, key, uri in places:
        path = local_path(uri)
        if path is None or path.is_absolute():
            continue
        if not is_here:
            raise RecipeError(
                found=f"'{uri}' lies in a folder of this machine, and the cluster has others",
                where=where,
                do="give a URI, or the whole path of a folder that all its machines mount",
            )
        whole[key] = os.path.abspath(path.expanduser())
    out = whole.pop("", out)
    if local_path(out) is not None and not is_here:
        print(f"clipmill: {out} must be mounted by every machine there", file=sys.stderr)
    return out, [f"--set={key}={json.dumps(path)}" for key, path in whole.items()]


async def _refuse_running(head: Head, out: str) -> None:
    for other in await head.fetch("api/jobs/"):
        if _out_of(other) == out and other["status"] not in ENDED:
            job = Job(other["submission_id"], head.address, out)
            raise RecipeError(
                found=f"{job} works in this run folder",
                where=redacted(out),
                do=f"wait for it, or use another --out\n{job.how_to}",
            )


# What is sent


def contents(recipe: Path) -> dict[str, bytes]:
    """Returns the files to send by name: the recipe, own stages and clipmill; no links."""
    here = Path(__file__).parents[1]
    ours = {path for pattern in OURS for path in here.glob(pattern) if not path.is_symlink()}
    files = {
        f"clipmill/{path.relative_to(here).as_posix()}": path.read_bytes()
        for path in ours
        if not path.is_relative_to(here / POOLS)
    }
    files |= {f"recipe/stages/{name}": file.read() for name, file in own_code.own().items()}
    return files | {f"recipe/{recipe.name}": recipe.read_bytes()}


def requirements(plan: Plan, out: str) -> list[str]:
    """Returns what pip needs for a plan's stages, models and storage: all packages but Ray."""
    strings = {text for keys in plan.recipe.stages.values() for text in _strings(keys)}
    schemes = {f"models.{text.partition(':')[0]}" for text in strings if ":" in text}
    names = [planned.uses for planned in plan.stages.values()] + sorted(schemes)
    files = [file for name in names if (file := own_code.find(name))]
    files += [file for file in own_code.imported(names).values() if file.path.suffix == ".py"]
    extras = extras_of(file.read() for file in files)
    extras |= {"s3"} if out.startswith("s3://") else set()
    needed = [
        *required(),
        *(package for extra in sorted(extras - {"ray"}) for package in required(extra)),
    ]
    return list(dict.fromkeys(f"{package.name}{package.specifier}" for package in needed))


def listed(sent: dict[str, bytes]) -> str:
    """Returns lines that name the sent files with their bytes; clipmill's own are one line."""
    ours = [name for name in sent if name.startswith("clipmill/")]
    sizes = {name: len(sent[name]) for name in sorted(sent.keys() - set(ours))}
    sizes[f"clipmill/ ({len(ours)} files)"] = sum(len(sent[name]) for name in ours)
    total = f"{len(sent)} files travel, {sum(sizes.values()):,} bytes:"
    return "\n".join([total, *(f"{size:>13,}  {name}" for name, size in sizes.items())])


def packed(sent: dict[str, bytes]) -> bytes:
    """Zips the files; equal files give equal bytes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in sorted(sent.items()):
            member = zipfile.ZipInfo(name)  # dated 1980, whatever the file's time
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return sink.getvalue()


async def _upload(head: Head, package: bytes) -> str:
    """Uploads the package, unless an equal one is there; returns its URI in the cluster."""
    name = f"_ray_pkg_{hashlib.sha256(package).hexdigest()[:32]}.zip"
    status, _ = await head.ask(f"api/packages/gcs/{name}")
    if status != 200:
        status, text = await head.ask(f"api/packages/gcs/{name}", "PUT", data=package)
        if status != 200:
            raise RecipeError(
                found=f"a package of {len(package):,} bytes is refused: {status} {text[-300:]}",
                where=redacted(head.address),
                do="see what is sent with --dry-run; keep big files out of your folder of stages",
            )
    return f"gcs://{name}"


def _words(error: BaseException) -> str:
    if isinstance(error, ClipmillError):
        return str(error.args[0])
    return str(error) or type(error).__name__
