"""`clipmill doctor`: what on this machine would stop a run, and what to do about it."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.extras import EXTRAS, install, pip_install
from clipmill.pipeline.verbs import DONE, FAILED
from clipmill.pipeline.verbs._options import add_json, add_stages

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HELP = "check this machine, a model, or a folder of evaluation tasks"
EXAMPLES = """\
clipmill doctor --out run
clipmill doctor --model reference --model checkpoint:model.pt
clipmill doctor --model smollm2
clipmill doctor tasks eval
"""
DASHBOARD = ("aiohttp_cors", "opencensus", "prometheus_client")  # of what ray[default] adds
LEAST_FILES = 4096
LEAST_DISK_GB = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `do` says what to do where it is not good."""

    name: str
    verdict: Literal["good", "note", "bad"]
    found: str
    do: str = ""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments, and those of `doctor tasks`."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="check that a model loads, or answers, as a recipe names it:"
        " `open_clip:ViT-B-32/openai`, `openai:http://host:8000/v1#qwen`; may be repeated",
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
    """Prints the findings; FAILED where one is bad."""
    is_tasks = options.subject == "tasks"
    findings = examine_tasks(options.folder) if is_tasks else examine(options.model, options.out)
    print(json.dumps(list(map(asdict, findings)), indent=1) if options.json else text(findings))
    return FAILED if any(finding.verdict == "bad" for finding in findings) else DONE


def examine(models: list[str], out: str | None) -> list[Finding]:
    """This machine's packages, GPU, memory, disk and limits, and each of the models."""
    return [
        _python(),
        *map(_package, _required()),
        *map(_extra, dict.fromkeys(EXTRAS.values())),
        _jobs(),
        *_environments(),
        _gpu(),
        _memory(),
        _disk(out or "."),
        _files(),
        *map(_model, models),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "good" if good else "bad", version, "" if good else "use 3.11 or up")


def _required(extra: str = "") -> Iterator["Requirement"]:
    """What clipmill's own metadata asks for on this machine: always, or an extra on top."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("clipmill") or ():
        wanted = Requirement(text)
        always, here = (
            wanted.marker is None or wanted.marker.evaluate({"extra": of}) for of in ("", extra)
        )
        if here and not (extra and always) and wanted.name != "clipmill":
            yield wanted


def _package(wanted: "Requirement") -> Finding:
    do = pip_install(f"{wanted.name}{wanted.specifier}")
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(wanted.name, "bad", "not installed", do)
    if wanted.specifier.contains(version, prereleases=True):
        return Finding(wanted.name, "good", version)
    return Finding(wanted.name, "bad", f"{version}, which is not {wanted.specifier}", do)


def _extra(extra: str) -> Finding:
    """Bad where a package of it is older than clipmill was tried with; it may lack packages."""
    name = f"extra {extra}"
    found = map(_package, _required(extra))
    if old := [one for one in found if one.verdict == "bad" and one.found != "not installed"]:
        said = "; ".join(f"{one.name} {one.found}" for one in old)
        return Finding(name, "bad", said, "; ".join(one.do for one in old))
    modules = [module for module, of in EXTRAS.items() if of == extra]
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
    """The Pythons that were made for stages."""
    from clipmill.pipeline.engine.environments import all_made

    return [
        Finding("python of its own", "good", f"{of}: {place}") for place, of in all_made().items()
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
    found = f"{total:.0f} GiB, {cores} cores"
    if total / cores >= 2:
        return Finding("memory", "good", found)
    return Finding("memory", "note", found, f"run with --workers {max(1, int(total // 2))}")


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


def _model(model: str) -> Finding:
    """Whether it loads, or answers; `reference` does both."""
    from clipmill.pipeline.verbs._writers import writes  # and asyncio, which other verbs do without

    name = f"model {without_keys(model)}"
    try:
        if writes(model) and model != "reference":
            return _writer(name, model)
        loaded = import_module("clipmill.stages.models.image_text").load(model)
        loaded.embed_images.prove()
        if not model.startswith("timm:"):  # of images alone
            loaded.embed_texts.prove()
        width = loaded.width
    except ClipmillError as error:
        return Finding(name, "bad", error.args[0], error.args[2])
    except ImportError as error:
        do = install(error.name or "") or f"pip install {error.name}"
        return Finding(name, "bad", str(error), do)
    except (ValueError, OSError) as error:  # of a scheme of the user's own
        do = f"write another name after the colon, or mend stages/models/{model.split(':')[0]}.py"
        return Finding(name, "bad", str(error), do)
    return Finding(name, "good", f"loads; embeddings are {width} wide")


def _writer(name: str, model: str) -> Finding:
    """Of a model that writes texts; a Python that it lacks is not made here."""
    from clipmill.pipeline.verbs._writers import answered, missing

    if lacks := missing(model):
        do = "the first run makes it, in some minutes"
        return Finding(name, "note", f"no Python with {', '.join(lacks)} is made yet", do)
    reason, found, do = answered(model)
    if reason is None:
        return Finding(name, "good", found)
    return Finding(name, "note" if reason == "empty_answer" else "bad", found, do)


def examine_tasks(folder: str) -> list[Finding]:
    """Everything wrong with a folder of evaluation tasks, and which of DataComp's it lacks."""
    tasks = import_module("clipmill.stages.ops.tasks.check")
    findings = [
        Finding(wrong.where, "bad" if wrong.is_fatal else "note", wrong.found, wrong.do)
        for wrong in tasks.check(folder)
    ]
    if not findings:
        findings = [Finding("tasks", "good", f"every task in {folder} can be scored")]
    lacking = tasks.lacking(folder)
    if not lacking:
        return [*findings, Finding("datacomp", "good", "all 38 tasks of its average are here")]
    summary = f"{len(lacking)} of the 38 tasks of its average are not here"
    do = "an average of all 38 needs each; without them averages are named partial"
    findings.append(Finding("datacomp", "note", summary, do))
    return findings + [Finding(one.name, "note", "not here", one.bring) for one in lacking]


def text(findings: list[Finding]) -> str:
    """One line a finding; what to do below it."""
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.verdict]}  {finding.name:<24} {finding.found}")
        if finding.do:
            lines.append(f"{'':<6}{finding.do}")
    return "\n".join(lines)
