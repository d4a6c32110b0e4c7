"""Whether a model that writes texts answers: one short question, of some tokens, and its answer."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from clipmill.pipeline.engine.environments import made, python_of
from clipmill.pipeline.engine.helpers import HelperProcess, cannot_load
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import Environment, Worker

QUESTION = "Say hello."
MOST_TOKENS, MOST_SHOWN = 8, 40  # of the answer; characters of it
WAIT_S = 60.0


def writes(model: str) -> bool:
    """Whether the scheme is one of models that write."""
    return model.partition(":")[0] in import_module("clipmill.stages.models.generator").SCHEMES


def missing(model: str) -> list[str]:
    """Packages of other Pythons that it needs and that are not made yet.

    ClipmillError where its weights are not there: no Python mends that.
    """
    generator: Any = import_module("clipmill.stages.models.generator")
    generator.look_for(model)
    needed = generator.environments_of(model)
    return [package for one in needed if made(one) is None for package in one.packages]


def answered(model: str) -> tuple[str | None, str, str]:
    """(reason, what was found, what to do) of one answer; without a reason all is well.

    A server of our own is started for it, once its Python can import what it needs.
    ClipmillError where there is none to ask.
    """
    generator: Any = import_module("clipmill.stages.models.generator")
    for environment in generator.environments_of(model):
        if environment.imports:
            _try_import(environment)
    with tempfile.TemporaryDirectory(prefix="doctor-") as scratch:
        worker = Worker(
            seed=0,
            stage="doctor",
            device="cuda" if shutil.which("nvidia-smi") else "cpu",
            threads=1,
            scratch=Path(scratch),
            environment=python_of,
            start_helper=partial(HelperProcess, "doctor", Path(scratch)),
        )
        asker = generator.open_asker(
            model,
            worker,
            decoding=generator.Decoding(max_tokens=MOST_TOKENS),
            limits=generator.Limits(timeout_s=WAIT_S, deadline_s=WAIT_S, retries=0),
            form="chat",
        )
        began = time.monotonic()
        answer = asyncio.run(asker.ask(generator.Prompt(text=QUESTION), seed=0))
        took_s = time.monotonic() - began
        del asker, worker  # which end the server
    if answer.reason is None:
        return None, f"answers in {took_s:.1f} s: {answer.text[:MOST_SHOWN]!r}", ""
    advice = {
        **generator.ADVICE,
        "empty_answer": "it may think before it writes: raise decoding.max_tokens",
        "bad_request": "where it is not tuned to chat, write form: completion into the recipe",
    }
    return answer.reason, f"no answer: {answer.reason}", advice.get(answer.reason, "see its log")


def _try_import(environment: Environment) -> None:
    """StageError where the Python made for it cannot import what it was made for."""
    python = str(made(environment))
    tried = subprocess.run(
        [python, "-I", "-c", f"import {environment.imports}"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ""},
        text=True,
    )
    if tried.returncode:
        last = tried.stderr.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"
        found, do = cannot_load(tried.stderr, python) or (
            f"cannot import {environment.imports}: {last}",
            f"see what `{python} -m pip check` says, or delete its folder: a run makes it anew",
        )
        raise StageError(f"its Python {found}", python, do)
