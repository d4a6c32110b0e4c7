"""`clipmill submit`: sends a run to a Ray cluster as a job, and follows it.

It sends one zip: the recipe, your own stages as `own_code` read them, and the files of clipmill in
OURS, so that the cluster runs what was planned here. Packages and keys are the cluster's own.
Anybody who reaches a dashboard can read every job's command and environment, so URIs with keys are
refused.
"""

import asyncio
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.metadata.keys import redacted, without_keys
from clipmill.metadata.storage import local_path
from clipmill.pipeline import own_code
from clipmill.pipeline.errors import ClipmillError, RecipeError
from clipmill.pipeline.jobs import CONNECT_S, ENDED, NO_CONTACT, Head, opened, token
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.stage import settings_fields

LOST_S = 120.0  # a followed head that is silent this long is given up
POLL_S = 1.0
POOLS = "pipeline/pools"  # makes test pools: no run needs it
OURS = (  # the only files of clipmill that are sent
    *("__init__.py", "metadata/**/*.py", "pipeline/**/*.py", "stages/**/*.py"),
    *("pipeline/recipes/*.yaml", "pipeline/own_data/*.j2", "pipeline/report/templates/*.html"),
    *("pipeline/report/templates/*.css", "pipeline/explore/page/*.css"),
    *("pipeline/explore/page/*.html", "pipeline/explore/page/*.js", "pipeline/explore/page/*.svg"),
    *("stages/annotate/spam_words.json", "stages/ops/tasks/datacomp_38.json"),
    *("stages/caption/*/*.yaml", "stages/score/phrases/*.txt", "stages/models/vllm*.txt"),
)
MACHINES = "nodes?view=hostNameList"


@dataclass(frozen=True)
class Job:
    """A run on a cluster: the job's id and the head's address."""

    id: str
    address: str

    def __str__(self) -> str:
        return f"job {self.id} at {redacted(self.address)}"

    @property
    def how_to(self) -> str:
        """Returns Ray's commands to follow and to stop it."""
        ray = "RAY_AUTH_MODE=token ray" if token() else "ray"
        target = f"{self.id} --address {redacted(self.address)}"
        return (
            f"  follow it: {ray} job logs --follow {target}\n  stop it:   {ray} job stop {target}"
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
) -> Job:
    """Submits the job with the files of `contents`; RecipeError if that fails, without a job."""
    if not address.startswith(("http://", "https://")) or has_keys(address):
        raise RecipeError(
            found=f"'{redacted(address)}' is no address of a dashboard",
            where="--address",
            do="give http://HOST:8265, where HOST is the head",
        )
    more = [f"--set={override}" for override in plan.recipe.overrides]
    more += [f"--until={until}"] if until else []
    more += [f"--retry={reason}" for reason in retry]
    more += ["--keep-going"] if keep_going else []
    more += [f"--workers={workers}"] if workers is not None else []
    try:
        return asyncio.run(_send(plan, address.rstrip("/"), out, more, packed(sent)))
    except NO_CONTACT as error:
        raise RecipeError(
            found=f"no Ray head answers: {_words(error)}",
            where=f"--address {redacted(address)}",
            do="check the address, which is the dashboard's; a head has one where ray[default] is",
        ) from None


async def _send(plan: Plan, address: str, out: str, more: list[str], package: bytes) -> Job:
    async with opened(address) as head:
        async with asyncio.timeout(CONNECT_S):
            await head.fetch("api/version")
        out, absolute = _paths(plan, out, await _is_all_here(head))
        await _refuse_running(head, out)
        recipe = Path(plan.recipe.path)
        command = ["clipmill", "run", f"recipe/{recipe.name}", "--out", out]
        command += ["--executor=ray", "--address=auto", *more, *absolute]
        word = re.sub("[^A-Za-z0-9]+", "-", recipe.stem)
        job = Job(f"clipmill-{word}-{uuid.uuid4().hex[:8]}", address)
        body = {
            "submission_id": job.id,
            "entrypoint": shlex.join(command),
            "runtime_env": {"working_dir": await _upload(head, package)},
            "metadata": {"clipmill_out": out},
        }
        await head.fetch("api/jobs/", "POST", json=body)
        return job


def follow(job: Job) -> int:
    """Prints the job's output until it ends; returns the exit code of its run."""
    return asyncio.run(_follow(job))


async def _follow(job: Job) -> int:
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
        raise ClipmillError("no `clipmill` there", str(job), "install it on all of the cluster")
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
    places = [("--out", "", out)]
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
        is_mine = (other.get("metadata") or {}).get("clipmill_out") == out
        if is_mine and other["status"] not in ENDED:
            job = Job(other["submission_id"], head.address)
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
