"""Runs that ask a server for captions, killed again and again; what was asked for, and stored.

A request is known by its digest at the server, and by the key of its stored answer in the run.
"""

import base64
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.answers import FOLDER, all_files, opened
from tests.engine_stages.harness import meaning, run_arguments

TARS, ROWS = 4, 20  # shards, and rows of each
LATENCY_S = 0.1
CANDIDATES = 3  # of a question at most
# Eight requests a row: two from the image, two of its caption, and each of the four joined with it.
RECIPE = """
stages:
  pool: {uses: ingest.webdataset, path: TARS}
  short:
    {uses: caption.synthesize, from: pool, model: "MODEL", candidates: 2, limits: {concurrency: 8}}
  made:
    {uses: caption.rewrite, from: pool, model: "MODEL", styles: [human, bard],
     limits: {concurrency: 8}}
  fused:
    {uses: caption.fuse, from: [short, made], captions: [short.captions, made.captions],
     model: "MODEL", limits: {concurrency: 8}}
"""


@dataclass(frozen=True)
class Server:
    """A stand-in in a process of its own."""

    model: str

    def _get(self, path: str) -> Any:
        base = self.model.removeprefix("openai:").partition("/v1#")[0]
        with urllib.request.urlopen(f"{base}/{path}", timeout=30) as answer:
            return json.load(answer)

    def asked(self) -> Counter[str]:
        """How often each request came, by the digest of its body."""
        return Counter(self._get("counts")["asked"])

    def tokens(self) -> int:
        """Those of all requests that came."""
        return int(self._get("counts")["tokens"])

    def busy(self) -> bool:
        """Whether it is at work on a request."""
        return bool(self._get("counts")["at_once"])

    def keys(self) -> dict[str, set[bytes]]:
        """The keys that an answer to each request may be stored by, by its digest."""
        return {digest: keys_of(body) for digest, body in self._get("bodies").items()}


@contextmanager
def served(*more: str, latency_s: float = LATENCY_S) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.text_server", "--latency", str(latency_s), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(process.stdout.readline().split()[0])
    finally:
        process.kill()
        process.wait()


def keys_of(body: Mapping[str, Any]) -> set[bytes]:
    """A request as the stage asked it, digested: for each candidate that it may have been."""
    question = {name: value for name, value in body.items() if name != "model"}
    image = None
    form = "chat" if "messages" in body else "completion"
    if form == "chat" and isinstance(content := body["messages"][-1]["content"], list):
        uri = content[0]["image_url"]["url"]
        image = hashlib.sha256(base64.b64decode(uri.partition(",")[2])).hexdigest()
        last = {"role": "user", "content": content[1]["text"]}
        question["messages"] = [*body["messages"][:-1], last]
    asked = ([body["model"], form, question, image, number] for number in range(CANDIDATES))
    return {hashlib.sha256(json.dumps(one, sort_keys=True).encode()).digest() for one in asked}


def stored_in(run: str) -> dict[bytes, bytes]:
    """Every answer that lies in a run folder, the least of each request; not the server's form."""
    folder = Storage(run).child(FOLDER)
    found: dict[bytes, bytes] = {}
    for file in all_files(folder):
        for key, answer in opened(folder, file.name, file.size):
            if answer in (b"chat", b"completion"):
                continue
            found[key] = min(answer, found.get(key, answer))
    return found


def shards_of(run: str) -> dict[str, str]:
    """The digest of each shard of each stage, by its name."""
    found = meaning(Storage(run))
    return {
        name: digest
        for name, digest in found.items()
        if name.startswith("stages/") and name.endswith(".parquet") and isinstance(digest, str)
    }


def write_recipe(folder: Path, model: str) -> Path:
    """The recipe over a pool of tars, which it writes too: every caption stands in one row."""
    for number in range(TARS):
        (folder / "tars").mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "tars" / f"{number:05d}.tar", "w") as tar:
            for row in range(number * ROWS, (number + 1) * ROWS):
                caption = f"a small black cat number {row} on a mat"
                add(tar, f"{row:05d}.png", picture(row))
                add(tar, f"{row:05d}.txt", caption.encode())
                add(tar, f"{row:05d}.json", json.dumps({"uid": f"{row:032x}"}).encode())
    recipe = folder / "asked.yaml"
    recipe.write_text(RECIPE.replace("TARS", str(folder / "tars")).replace("MODEL", model))
    return recipe


def picture(row: int) -> bytes:
    """One that differs from all others."""
    file = io.BytesIO()
    Image.new("RGB", (32 + row, 32), (row, 40, 80)).save(file, "png")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@dataclass
class Tally:
    """What some lives of runs came to."""

    kills: int = 0
    with_answers: int = 0  # of the kills: after which more answers were stored than before
    requests: int = 0
    twice: int = 0  # of the requests: those that the same run folder had asked for before
    of_stored: int = 0  # of those: the answer was stored as the life began
    changed: int = 0  # answers that were stored as a life began, and another one or none after it
    wrong: list[str] = field(default_factory=list)  # what runs that ended said or left

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.with_answers} of them after answers were stored;"
            f" {self.requests} requests, {self.twice} asked twice, {self.of_stored} of these were"
            f" stored; {self.changed} stored answers changed; {len(self.wrong)} wrong ends"
        )


@dataclass
class Killer:
    """Runs of a recipe that live for a while, in one folder until it is done, then in the next."""

    recipe: Path
    server: Server
    folder_of: Callable[[int], str]
    scratch: Path
    chance: random.Random
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.number = 0
        self.before: Counter[str] = self.server.asked()  # what this folder did not ask for

    def until(self, kills: int, expected: Mapping[str, str]) -> Tally:
        """Kills so many, and lets the last folder's run end: its shards are as expected."""
        while self.tally.kills < kills:
            self._live(expected, may_die=True)
        self._live(expected, may_die=False)
        return self.tally

    def _live(self, expected: Mapping[str, str], may_die: bool) -> None:
        run = self.folder_of(self.number)
        stored, counted = stored_in(run), self.server.asked()
        process = begin(self.recipe, run, self.scratch)
        if may_die:
            self._wait(process, counted.total() + self.chance.randint(0, 80))
        is_killed = may_die and process.poll() is None
        if is_killed:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        self._count(run, stored, counted, is_killed)
        if is_killed:
            return
        found = shards_of(run)
        if code or found != dict(expected):
            output = (self.scratch / "output.txt").read_text()
            self.tally.wrong.append(f"{run} ended {code}: {sorted(found)}\n{output}")
        self.number += 1
        self.before = self.server.asked()

    def _wait(self, process: "subprocess.Popen[bytes]", requests: int) -> None:
        """Until the server has counted so many, and for up to a second and a bit."""
        while process.poll() is None and self.server.asked().total() < requests:
            time.sleep(0.02)
        try:
            process.wait(self.chance.uniform(0, 1.3))
        except subprocess.TimeoutExpired:
            return

    def _count(
        self, run: str, stored: Mapping[bytes, bytes], counted: Counter[str], is_killed: bool
    ) -> None:
        new, keys, now = self.server.asked() - counted, self.server.keys(), stored_in(run)
        tally, earlier = self.tally, counted - self.before
        tally.kills += is_killed
        tally.with_answers += is_killed and len(now) > len(stored)
        tally.requests += new.total()
        tally.twice += sum(times - (digest not in earlier) for digest, times in new.items())
        tally.of_stored += sum(bool(keys[digest] & stored.keys()) for digest in new)
        tally.changed += sum(now.get(key) != answer for key, answer in stored.items())
        known = set().union(*(keys[digest] for digest in self.server.asked() - self.before))
        assert now.keys() <= known, "answers are stored by other keys than this file makes"


def begin(
    recipe: Path, run: str, scratch: Path, *more: str, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """A run with two workers, in a process group of its own."""
    return started(scratch, *run_arguments(recipe, run, 2, *more), env=env)


def started(
    scratch: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """One `clipmill` in a process group of its own; what it says is in output.txt."""
    with (scratch / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "clipmill.pipeline.cli", *arguments],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
