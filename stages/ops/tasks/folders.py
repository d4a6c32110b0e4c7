"""Reads evaluation tasks in CLIP_benchmark's webdataset layout, and finds what is wrong with them.

NAME/classnames.txt, NAME/zeroshot_classification_templates.txt (`{c}` is the class),
NAME/test/nshards.txt, NAME/test/0.tar …: KEY.png (jpg, jpeg, webp) beside KEY.cls, a class number,
and KEY.npy, numbers that say which group the picture is of. A task with `multilabel` in
NAME/dataset_type.txt has KEY.npy alone, a number a class: 1 of each that the picture has. A
retrieval task has KEY.txt, one caption a line, and no class names; or NAME/test/*.parquet with
`image` and `caption`; with `pattern`, too, rows 1 and 2, 3 and 4 … are pairs. A task of
associations (WinoGAViL) is Parquet: `cue`, `candidates`, `candidate_images`, `associations`.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple
from string import Formatter
from typing import cast

import pyarrow.parquet as pq
from pyarrow import fs

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.limits import limit
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.tasks._samples import (
    BROKEN,
    CLASSNAMES,
    CUE,
    OF_CAPTIONS,
    OF_CUES,
    PARQUET,
    PATTERN,
    TRUTHS,
    Finding,
    Kind,
    Sample,
    TaskFolder,
    samples,
    text_of,
)
from clipmill.stages.ops.tasks.listed import listed

__all__ = ["CLASSNAMES", "Finding", "Sample", "TaskFolder", "samples"]  # re-exported

TEMPLATES = "zeroshot_classification_templates.txt"
NSHARDS, TYPE = "test/nshards.txt", "dataset_type.txt"
TEXTS = (CLASSNAMES, TEMPLATES, NSHARDS, TYPE)
MOST_DIGITS = 9  # of a number of shards
CACHE = "hf_cache"  # DataComp's own download keeps three tasks there, in another layout


def names(folder: Storage) -> list[str]:
    """Returns the tasks of a folder: its subfolders, by name; hidden ones are skipped."""
    return [name for name in folder.folders() if not name.startswith(".") and name != CACHE]


def none_at(folder: Storage) -> str:
    """Returns why a folder without a task has none."""
    exists = folder.fs.get_file_info(folder.path).type != fs.FileType.NotFound
    return "no task" if exists else "no such folder"


def need_some(tasks: list[str], folder: Storage, where: str) -> list[str]:
    """Returns the tasks; StageError if there is none."""
    if not tasks:
        do = "give a folder whose subfolders are tasks in CLIP_benchmark's layout"
        raise StageError(none_at(folder), f"{where}: {folder}", do)
    return tasks


def content_digest(folder: Storage, name: str) -> str:
    """Returns SHA-256 over name and bytes of every file of a task that is read."""
    total = hashlib.sha256()
    for below in ("", "test"):
        for entry in sorted(folder.entries(f"{name}/{below}".rstrip("/")), key=lambda e: e.name):
            with folder.open(f"{name}/{below}/{entry.name}".replace("//", "/")) as file:
                hashed = hashlib.sha256()
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
            total.update(f"{below}/{entry.name} {hashed.hexdigest()}\n".encode())
    return total.hexdigest()


def listing_digest(folder: Storage) -> str:
    """Returns a digest that changes with the name, size or time of any file of a task."""
    places = [f"{name}{below}" for name in names(folder) for below in ("", "/test")]
    return digest([[place, sorted(map(astuple, folder.entries(place)))] for place in places])


def describe(folder: Storage, name: str) -> tuple[TaskFolder, list[Finding]]:
    """Returns a task from its text files and shard names, and findings; reads no picture."""
    if large := _too_large(folder, name):
        return TaskFolder(name, "classification", (), (), ()), large
    classnames, templates = _lines(folder, name, CLASSNAMES), _lines(folder, name, TEMPLATES)
    shards, findings = _shards(folder, name)
    kind, more = _kind(folder, name, shards, classnames is None and templates is None)
    findings += more
    if kind in ("classification", "multilabel"):
        findings += _name_findings(name, classnames, templates)
    known = listed(name) if kind != "multilabel" else None  # none of DataComp's is one
    as_listed = known and (known.classes or 0) in (len(classnames or ()), 0)
    task = TaskFolder(
        name=name,
        kind=kind,
        classnames=tuple(classnames or ()),
        templates=tuple(templates or ()),
        shards=shards,
        listed=known if as_listed else None,
    )
    if known and not as_listed and classnames:
        text = f"{len(classnames)} classes, and DataComp's {known.name} has {known.classes}"
        do = "it is scored as a task of your own; name it so, or bring DataComp's"
        findings.append(Finding(text, f"{name}/{CLASSNAMES}", do, False))
    return task, findings


def look_at(folder: Storage, tasks: Iterable[str]) -> None:
    """Raises StageError for the first of the tasks that cannot be scored, reading no picture."""
    findings = [finding for name in tasks for finding in describe(folder, name)[1]]
    refuse([finding for finding in findings if finding.is_fatal], None, folder)


def refuse(findings: list[Finding], stage: str | None, folder: Storage, key: str = "tasks") -> None:
    """Raises StageError for the first finding, if any; the setting `key` names the folder.

    There is no `stage` while a recipe is planned.
    """
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        first, prefix = findings[0], f"stage '{stage}', key" if stage else "key"
        raise StageError(
            found=first.found + more,
            where=f"{prefix} `{key}`: {folder}/{first.where}",
            do=f"{first.do}; `clipmill doctor tasks {shlex.quote(str(folder))}`"
            " lists all that is wrong",
        )


def _kind(
    folder: Storage, name: str, shards: tuple[str, ...], is_bare: bool
) -> tuple[Kind, list[Finding]]:
    """Returns the kind of a task; `is_bare`: without class names and templates."""
    known = listed(name)
    if known and known.metric is None:
        return "unscored", []
    lines = _lines(folder, name, TYPE)
    if lines and lines[0] not in TRUTHS:
        text = f"a {lines[0]} task, which has no rule here"
        return "classification", [Finding(text, f"{name}/{TYPE}", "take its folder out")]
    if shards and shards[0].endswith(PARQUET):
        where = f"{name}/test/{shards[0]}"
        try:
            with folder.open(where) as source:
                present = set(pq.read_schema(source).names)
        except BROKEN as error:
            text = f"a shard that cannot be read: {error}"
            return "retrieval", [Finding(text, where, "copy it again")]
        lacks = set(OF_CUES if CUE in present else OF_CAPTIONS) - present
        kind: Kind = "association" if CUE in present else "retrieval"
        kind = "pairs" if PATTERN in present else kind
        text = f"no column {sorted(lacks)[0]!r}" if lacks else ""
        return kind, [Finding(text, where, "write it into the file")] if lacks else []
    if lines:
        return cast(Kind, lines[0]), []
    return ("retrieval" if is_bare else "classification"), []


def _shards(folder: Storage, name: str) -> tuple[tuple[str, ...], list[Finding]]:
    lines = _lines(folder, name, NSHARDS)
    where = f"{name}/{NSHARDS}"
    present = {e.name for e in folder.entries(f"{name}/test")}
    tables = tuple(sorted(file for file in present if file.endswith(PARQUET)))
    if tables and lines is None:
        return tables, []
    if lines is None and folder.read_if_there(NSHARDS) is not None:
        return (), [Finding("a task, not a folder of them", NSHARDS, "give the folder above it")]
    if lines is None:
        return (), [Finding("no such file", where, "write the number of shards into it")]
    if not lines or len(lines[0]) > MOST_DIGITS or not lines[0].isdecimal() or not int(lines[0]):
        found = f"holds {' '.join(lines)[:100]!r}"
        return (), [Finding(found, where, "write the number of shards")]
    present = {file for file in present if file.endswith(".tar")}
    # The file may state any number: look only at shards that exist, and at the first gap.
    numbers = {int(n) for n in (f[:-4] for f in present) if n.isdecimal() and len(n) < 10}
    stated = range(int(lines[0]))
    shards = tuple(f"{n}.tar" for n in sorted(numbers) if n in stated and f"{n}.tar" in present)
    findings = []
    if gap := next((shard for n in stated if (shard := f"{n}.tar") not in present), None):
        findings.append(
            Finding(f"says {lines[0]}, and {gap} is missing", where, "mend it or add shards")
        )
    if unread := sorted(present - set(shards)):
        text = f"says {lines[0]}, so {unread[0]} is never read"
        findings.append(Finding(text, where, "mend the number, or remove the shard"))
    return shards, findings


def _name_findings(
    name: str, classnames: list[str] | None, templates: list[str] | None
) -> list[Finding]:
    findings = []
    for file, lines, what, most in (
        (CLASSNAMES, classnames, "a class", limit("MAX_TASK_CLASSES")),
        (TEMPLATES, templates, "a template", limit("MAX_TASK_TEMPLATES")),
    ):
        if lines and len(lines) > most:
            text = f"{len(lines):,} lines, and at most {most:,} are read"
            findings.append(Finding(text, f"{name}/{file}", f"write {what} a line"))
        if not lines:
            text = "no such file" if lines is None else "an empty file"
            findings.append(Finding(text, f"{name}/{file}", f"write {what} a line"))
    if findings:
        return findings
    longest = max(map(len, classnames or ()), default=0)
    for number, template in enumerate(templates or (), 1):
        where = f"{name}/{TEMPLATES}, line {number}"
        if found := _unfit(template, longest):
            findings.append(Finding(found, where, "put {c} where the class goes"))
    for number, text in enumerate(classnames or (), 1):
        if not text:
            where = f"{name}/{CLASSNAMES}, line {number}"
            findings.append(Finding("a class without a name", where, "name it"))
    for text, count in Counter(classnames or ()).items():
        if text and count > 1:
            what = f"{count} classes are named {text!r}: no model can tell them apart"
            findings.append(Finding(what, f"{name}/{CLASSNAMES}", "give each its own name", False))
    return findings


def _unfit(template: str, longest: int) -> str | None:
    """Returns what is wrong with a template, to be filled in by names of up to `longest` letters.

    It is checked before it is filled in: `{c:>2000000000}` is a text of 2 GB.
    """
    try:
        fields = [(field, spec) for _, field, spec, _ in Formatter().parse(template) if field]
    except ValueError:  # a stray brace
        fields = []
    shown = repr(template[:100])
    if any(spec for _, spec in fields):
        return f"{shown} says more of {{c}} than its place"
    most = limit("MAX_PROMPT_CHARS")
    if len(template) + longest * len(fields) > most:
        return f"{shown} is longer than {most:,} characters with a class name in it"
    try:
        same = template.format(c="one") == template.format(c="two")
    except (AttributeError, LookupError, TypeError, ValueError):  # a stray brace, another name
        same = True
    return f"{shown} has no {{c}}" if same else None


def _too_large(folder: Storage, name: str) -> list[Finding]:
    """Returns a finding for each text file of a task that has more bytes than are read."""
    infos = folder.fs.get_file_info([folder.locate(f"{name}/{file}") for file in TEXTS])
    most, do = limit("MAX_TASK_TEXT_BYTES"), "take out what is no name, template or number"
    return [
        Finding(f"{info.size:,} bytes, and at most {most:,} are read", f"{name}/{file}", do)
        for file, info in zip(TEXTS, infos, strict=True)
        if (info.size or 0) > most
    ]


def _lines(folder: Storage, name: str, file: str) -> list[str] | None:
    data = folder.read_if_there(f"{name}/{file}")
    return None if data is None else [line.strip() for line in text_of(data).splitlines()]
