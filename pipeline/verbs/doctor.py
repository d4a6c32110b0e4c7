"""`clipmill doctor`: checks this machine for what would stop a run, and says what to do."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import ClipmillError, RecipeError, StageError
from clipmill.pipeline.extras import EXTRAS, install, pip_install
from clipmill.pipeline.provided import Finding
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs._options import add_json, add_several, add_stages

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from clipmill.pipeline.stage import Environment

HELP = "check this machine, a model, a network, or evaluation tasks"
EXAMPLES = """\
clipmill doctor --out run
clipmill doctor --model reference --model checkpoint:model.pt
clipmill doctor --onnx nsfw.onnx
clipmill doctor tasks eval
"""
DASHBOARD = ("aiohttp_cors", "opencensus", "prometheus_client")  # of ray[default]
LEAST_FILES = 4096
LEAST_DISK_GB = 10.0


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments, and those of `doctor tasks`."""
    add_several(
        parser,
        "--model",
        metavar="MODEL",
        help="check that a model loads, or answers, as a recipe names it:"
        " `open_clip:ViT-B-32/openai`, `openai:http://host:8000/v1#qwen`; may be repeated",
    )
    add_several(
        parser,
        "--onnx",
        metavar="FILE",
        help="run a network of an ONNX file: its inputs, outputs, speed, and lines of a recipe",
    )
    parser.add_argument(
        "--out", metavar="URI", help="run folder whose disk is checked (default: here)"
    )
    add_stages(parser)
    add_json(parser)
    subjects = parser.add_subparsers(dest="subject", metavar="[tasks DIR]")
    tasks = subjects.add_parser(
        "tasks",
        help="check a folder of evaluation tasks instead",
        description="Check a folder of evaluation tasks.",
    )
    tasks.add_argument("folder", metavar="DIR", help="the folder of tasks")
    tasks.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the findings; returns FAILED if one is bad."""
    if options.subject == "tasks":
        findings = _findings_on("tasks", options.folder)
    else:
        findings = examine(options.model, options.out, options.onnx)
    print(json.dumps(list(map(asdict, findings)), indent=1) if options.json else text(findings))
    return FAILED if any(finding.verdict == "bad" for finding in findings) else DONE


def examine(models: list[str], out: str | None, networks: Sequence[str] = ()) -> list[Finding]:
    """Checks this machine's packages, GPU, memory, disk and limits, and each model and network."""
    from clipmill.pipeline.requirements import required  # late, as each verb imports this file

    return [
        _python(),
        *map(_package, required()),
        *map(_extra, dict.fromkeys(EXTRAS.values())),
        _jobs(),
        *_environments(),
        _gpu(),
        _memory(),
        _disk(out or "."),
        _files(),
        *(finding for model in models for finding in _outside("model", model)),
        *(finding for file in networks for finding in _outside("onnx", file)),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "good" if good else "bad", version, "" if good else "use 3.11 or up")


def _package(requirement: "Requirement") -> Finding:
    do = pip_install(f"{requirement.name}{requirement.specifier}")
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "bad", "not installed", do)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, "good", version)
    return Finding(requirement.name, "bad", f"{version}, which is not {requirement.specifier}", do)


def _extra(extra: str) -> Finding:
    """Checks an extra: bad if a package's version does not fit, a note if packages are missing."""
    from clipmill.pipeline.requirements import required

    name = f"extra {extra}"
    findings = map(_package, required(extra))
    if old := [f for f in findings if f.verdict == "bad" and f.found != "not installed"]:
        problems = "; ".join(f"{finding.name} {finding.found}" for finding in old)
        return Finding(name, "bad", problems, "; ".join(finding.do for finding in old))
    modules = [module for module, owner in EXTRAS.items() if owner == extra]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return Finding(name, "good", "installed")
    do = f"{install(missing[0])} where a recipe needs it"
    return Finding(name, "note", f"without {', '.join(missing)}", do)


def _jobs() -> Finding:
    missing = [module for module in DASHBOARD if importlib.util.find_spec(module) is None]
    if not missing:
        return Finding("ray jobs", "good", "a head started here takes what `submit` sends")
    do = "pip install 'ray[default]' on the head of a cluster; whoever submits needs nothing"
    return Finding("ray jobs", "note", f"a head started here takes none: no {missing[0]}", do)


def _environments() -> list[Finding]:
    """Lists the Python environments made for stages."""
    from clipmill.pipeline.engine.environments import all_made

    return [
        Finding("python of its own", "good", f"{packages}: {place}")
        for place, packages in all_made().items()
    ]


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "note", "no NVIDIA driver", "stages run on the CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding("gpu", "note", "a driver, and no torch", install("torch"))
    torch = import_module("torch")
    count = torch.cuda.device_count()
    if not count:
        return Finding("gpu", "bad", "torch sees no GPU", "install a CUDA build of torch")
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return Finding("gpu", "good", names)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = os.cpu_count() or 1
    words = f"{total:.0f} GiB, {cores} cores"
    if total / cores >= 2:
        return Finding("memory", "good", words)
    return Finding("memory", "note", words, f"run with --workers {max(1, int(total // 2))}")


def _disk(uri: str) -> Finding:
    from clipmill.metadata.storage import Storage

    storage = Storage(uri)
    if not storage.is_local:
        try:
            storage.put("doctor.txt", b"clipmill was here", point="doctor")
            storage.delete("doctor.txt")
        except OSError as error:
            return Finding("storage", "bad", f"{storage}: {error}", "check keys and bucket")
        return Finding("storage", "good", f"{storage} can be written")
    path = storage.path
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    free = shutil.disk_usage(path).free / 1e9
    good = free >= LEAST_DISK_GB and os.access(path, os.W_OK)
    do = "" if good else f"a run wants {LEAST_DISK_GB:.0f} GB free and writable, or s3://…"
    return Finding("disk", "good" if good else "note", f"{free:,.0f} GB free at {path}", do)


def _files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = soft >= LEAST_FILES
    do = "" if good else f"ulimit -n {min(hard, 65_536)} before a run that downloads"
    return Finding("open files", "good" if good else "note", f"{soft:,} allowed", do)


def _outside(about: str, model: str) -> list[Finding]:
    """Checks that a model or network loads, or answers what stages ask."""
    name = f"{about} {without_keys(model)}"
    try:
        findings = _findings_on(about, model)
    except ClipmillError as error:
        return [Finding(name, "bad", error.args[0], error.args[2])]
    except ImportError as error:
        do = install(error.name or "") or f"pip install {error.name}"
        return [Finding(name, "bad", str(error), do)]
    except (ValueError, OSError) as error:  # from a user's own scheme
        do = f"write another name after the colon, or mend stages/models/{model.split(':')[0]}.py"
        return [Finding(name, "bad", str(error), do)]
    return [replace(each, name=name + each.name.removeprefix(model)) for each in findings]


def _findings_on(about: str, value: str) -> list[Finding]:
    """Returns the findings on a value, from the first stage that knows it."""
    from clipmill.pipeline.engine.environments import python_of
    from clipmill.pipeline.engine.helpers import HelperProcess
    from clipmill.pipeline.planning.settings import declaring, stage_class
    from clipmill.pipeline.stage import Worker

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
        for uses in declaring("proofs"):
            prove = dict(stage_class(uses, f"clipmill doctor, {about}").proofs).get(about)
            if prove and (findings := prove(value, worker, _lacking)) is not None:
                return findings
    raise RecipeError(f"no stage has a {about}", "clipmill doctor", "mend the folder of --stages")


def _lacking(environments: Sequence["Environment"]) -> list[str]:
    """Returns packages of environments that are not made; if all are, tries to import each."""
    from clipmill.pipeline.engine.environments import made

    if lacks := [
        package for each in environments if made(each) is None for package in each.packages
    ]:
        return lacks
    for environment in environments:
        if environment.imports:
            _try_import(environment, str(made(environment)))
    return []


def _try_import(environment: "Environment", python: str) -> None:
    """Raises StageError if an environment cannot import its main module."""
    from clipmill.pipeline.engine.helpers import cannot_load

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


def text(findings: list[Finding]) -> str:
    """Returns a line a finding, with what to do below."""
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.verdict]}  {finding.name:<24} {finding.found}")
        if finding.do:
            lines.append(f"{'':<6}{finding.do}")
    return "\n".join(lines)
