"""Evaluation tasks on storage, in CLIP_benchmark's webdataset layout, and what is wrong with them.

NAME/classnames.txt, NAME/zeroshot_classification_templates.txt (`{c}` is the class),
NAME/test/nshards.txt, NAME/test/0.tar …: KEY.png (jpg, jpeg, webp) beside KEY.cls, a class number.
A retrieval task has KEY.txt, one caption a line, and no class names.
"""

import hashlib
import shlex
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from metadata.fingerprint import digest
from metadata.storage import Storage
from pipeline.errors import StageError

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
NSHARDS, TYPE = "test/nshards.txt", "dataset_type.txt"
IMAGES = ("png", "jpg", "jpeg", "webp")


@dataclass(frozen=True)
class Finding:
    """Something wrong with a task; a fatal one would make its figures wrong or missing."""

    found: str
    where: str
    do: str
    is_fatal: bool = True


@dataclass(frozen=True)
class TaskFolder:
    """What a task's text files say."""

    name: str
    is_retrieval: bool
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One picture, and its class or captions."""

    key: str
    rgb: NDArray[np.uint8]
    label: int = -1
    captions: tuple[str, ...] = ()


def names(folder: Storage) -> list[str]:
    """The tasks of a folder: its subfolders, by name; hidden ones are passed over."""
    return [name for name in folder.folders() if not name.startswith(".")]


def none_at(folder: Storage) -> str:
    """Why a folder without a task has none."""
    there = folder.fs.get_file_info(folder.path).type != fs.FileType.NotFound
    return "no task" if there else "no such folder"


def content_digest(folder: Storage, name: str) -> str:
    """SHA-256 over name and bytes of every file of a task that is read."""
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
    """A digest that changes with the name, size or time of any file of a task."""
    places = [f"{name}{below}" for name in names(folder) for below in ("", "/test")]
    return digest([[at, sorted(map(astuple, folder.entries(at)))] for at in places])


def describe(folder: Storage, name: str) -> tuple[TaskFolder, list[Finding]]:
    """A task from its text files and the names of its shards, and findings; reads no picture."""
    classnames, templates = _lines(folder, name, CLASSNAMES), _lines(folder, name, TEMPLATES)
    lines = _lines(folder, name, TYPE)
    is_retrieval = lines[0] == "retrieval" if lines else classnames is None and templates is None
    shards, findings = _shards(folder, name)
    if not is_retrieval:
        findings += _name_findings(name, classnames, templates)
    task = TaskFolder(
        name=name,
        is_retrieval=is_retrieval,
        classnames=tuple(classnames or ()),
        templates=tuple(templates or ()),
        shards=shards,
    )
    return task, findings


def samples(folder: Storage, task: TaskFolder) -> Iterator[Sample | Finding]:
    """Every sample of a task's shards in order; a Finding in the place of a bad sample."""
    from stages.ops.images import ImageError, decode

    for shard in task.shards:
        where = f"{task.name}/test/{shard}"
        try:
            for key, members in _groups(folder, where):
                body = next((members[suffix] for suffix in IMAGES if suffix in members), None)
                truth = members.get("txt" if task.is_retrieval else "cls")
                place = f"{where}, key {key}"
                try:
                    if body is None or truth is None:
                        lacks = "picture" if body is None else "KEY.cls or KEY.txt"
                        yield Finding(f"a sample without a {lacks}", place, "add it, or drop it")
                    elif task.is_retrieval:
                        captions = tuple(filter(None, map(str.strip, _text(truth).splitlines())))
                        yield Sample(key, decode(body), captions=captions)
                    else:
                        yield _labelled(key, body, truth, task, place)
                except ImageError as error:
                    yield Finding(f"a picture that is {error.code}", place, "replace it")
                except ValueError:
                    label = truth[:20] if truth else b""
                    yield Finding(f"KEY.cls holds {label!r}", place, "write a class number")
        except (OSError, tarfile.TarError) as error:
            yield Finding(f"a shard that cannot be read: {error}", where, "copy it again")


def refuse(findings: list[Finding], stage: str, folder: Storage, key: str = "tasks") -> None:
    """Raises StageError for the first finding, if any; the setting `key` names the folder."""
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        first = findings[0]
        raise StageError(
            found=first.found + more,
            where=f"stage '{stage}', key `{key}`: {folder}/{first.where}",
            do=f"{first.do}; `clipmill doctor tasks {shlex.quote(str(folder))}`"
            " lists all that is wrong",
        )


def check(uri: str) -> list[Finding]:
    """All that is wrong with a folder of tasks; every picture is decoded."""
    folder = Storage(uri)
    findings = []
    if not names(folder):
        findings = [Finding(none_at(folder), str(folder), "one subfolder is one task")]
    for name in names(folder):
        task, of_task = describe(folder, name)
        findings += of_task
        labels: Counter[int] = Counter()
        bare = 0
        for sample in samples(folder, task):
            if isinstance(sample, Finding):
                findings.append(sample)
            else:
                labels[sample.label] += 1
                bare += not sample.captions
        if task.shards and not labels:
            findings.append(Finding("no sample", name, "put pictures into the shards of test/"))
        elif task.is_retrieval and bare:
            is_fatal = bare == labels.total()
            text = (
                f"{bare} of {labels.total()} pictures have no caption: none can be found for them"
            )
            findings.append(Finding(text, name, "write one a line into KEY.txt", is_fatal))
        unseen = [c for i, c in enumerate(task.classnames) if i not in labels]
        if not task.is_retrieval and unseen and labels:
            text = f"{len(unseen)} of {len(task.classnames)} classes have no picture: {unseen[0]!r}"
            findings.append(Finding(text, f"{name}/{CLASSNAMES}", "check the names' order", False))
    return findings


def _labelled(
    key: str, body: bytes, truth: bytes, task: TaskFolder, place: str
) -> Sample | Finding:
    from stages.ops.images import decode

    label = int(_text(truth))
    if 0 <= label < len(task.classnames):
        return Sample(key, decode(body), label)
    return Finding(
        f"class {label}, and {CLASSNAMES} names {len(task.classnames)}",
        place,
        f"name class n in line n + 1 of {CLASSNAMES}",
    )


def _shards(folder: Storage, name: str) -> tuple[tuple[str, ...], list[Finding]]:
    lines = _lines(folder, name, NSHARDS)
    where = f"{name}/{NSHARDS}"
    if lines is None and folder.read_if_there(NSHARDS) is not None:
        return (), [Finding("a task, not a folder of them", NSHARDS, "give the folder above it")]
    if lines is None:
        return (), [Finding("no such file", where, "write the number of shards into it")]
    if not lines or not lines[0].isdecimal() or not int(lines[0]):
        return (), [Finding(f"holds {' '.join(lines)!r}", where, "write the number of shards")]
    shards = tuple(f"{number}.tar" for number in range(int(lines[0])))
    there = {e.name for e in folder.entries(f"{name}/test") if e.name.endswith(".tar")}
    findings = []
    if missing := [shard for shard in shards if shard not in there]:
        findings.append(
            Finding(f"says {lines[0]}, and {missing[0]} is missing", where, "mend it or add shards")
        )
    if unread := sorted(there - set(shards)):
        text = f"says {lines[0]}, so {unread[0]} is never read"
        findings.append(Finding(text, where, "mend the number, or remove the shard"))
    return tuple(shard for shard in shards if shard in there), findings


def _name_findings(
    name: str, classnames: list[str] | None, templates: list[str] | None
) -> list[Finding]:
    findings = []
    for file, lines, what in (
        (CLASSNAMES, classnames, "a class"),
        (TEMPLATES, templates, "a template"),
    ):
        if not lines:
            text = "no such file" if lines is None else "an empty file"
            findings.append(Finding(text, f"{name}/{file}", f"write {what} a line"))
    for number, template in enumerate(templates or (), 1):
        where = f"{name}/{TEMPLATES}, line {number}"
        try:
            same = template.format(c="one") == template.format(c="two")
        except (ValueError, LookupError):  # a stray brace, another name
            same = True
        if same:
            findings.append(
                Finding(f"{template!r} has no {{c}}", where, "put {c} where the class goes")
            )
    for number, text in enumerate(classnames or (), 1):
        if not text:
            where = f"{name}/{CLASSNAMES}, line {number}"
            findings.append(Finding("a class without a name", where, "name it"))
    for text, count in Counter(classnames or ()).items():
        if text and count > 1:
            what = f"{count} classes are named {text!r}: no model can tell them apart"
            findings.append(Finding(what, f"{name}/{CLASSNAMES}", "give each its own name", False))
    return findings


def _groups(folder: Storage, shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: neighbours of one key; a repeated suffix begins a new sample."""
    key, members = "", {}  # type: str, dict[str, bytes]
    with folder.open(shard) as source, tarfile.open(fileobj=source, mode="r:") as tar:
        for member in tar:
            stem, _, suffix = member.name.rpartition("/")[2].partition(".")
            if not member.isfile() or not stem:
                continue
            if members and (stem != key or suffix in members):
                yield key, members
                members = {}
            key = stem
            file = tar.extractfile(member)
            members[suffix.lower()] = file.read() if file else b""
    if members:
        yield key, members


def _lines(folder: Storage, name: str, file: str) -> list[str] | None:
    data = folder.read_if_there(f"{name}/{file}")
    return None if data is None else [line.strip() for line in _text(data).splitlines()]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip("\ufeff\n\r ")
