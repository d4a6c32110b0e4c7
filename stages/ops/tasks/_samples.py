"""Reads the samples of an evaluation task from its tars or its Parquet files.

A tar of the webdataset layout: KEY.png beside KEY.cls, KEY.txt, KEY.npy. A Parquet file as the
`datasets` library writes one: pictures are encoded bytes, alone or as {bytes, path}.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.limits import limit
from clipmill.metadata.storage import Storage
from clipmill.stages.ops.tables import tars
from clipmill.stages.ops.tasks.listed import Listed

CLASSNAMES = "classnames.txt"
IMAGES = ("png", "jpg", "jpeg", "webp")
PARQUET = ".parquet"
CUE = "cue"  # a column that only a task of associations has
PATTERN = "pattern"  # a column that only a task of pairs has
OF_CUES = (CUE, "candidates", "candidate_images", "associations")
OF_CAPTIONS = ("image", "caption")
OF_PAIRS = (*OF_CAPTIONS, PATTERN)
ROWS = 8  # of a Parquet file held at a time; one may hold a dozen pictures
BROKEN = (OSError, KeyError, tarfile.TarError, pa.ArrowException)  # of a file that cannot be read
# Errors of a KEY.npy that is none.
NO_NUMBER = (ArithmeticError, AttributeError, EOFError, IndexError, OSError, TypeError, ValueError)
# The file of a tar's sample that says what is right, by the kind of task.
TRUTHS = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}
Kind = Literal["classification", "multilabel", "retrieval", "association", "pairs", "unscored"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a task; a fatal one would make its figures wrong or missing."""

    found: str
    where: str
    do: str
    is_fatal: bool = True


@dataclass(frozen=True)
class TaskFolder:
    """A task as its text files describe it."""

    name: str
    kind: Kind
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]
    listed: Listed | None = None  # DataComp's task of this name and number of classes

    @property
    def is_retrieval(self) -> bool:
        return self.kind == "retrieval"


@dataclass(frozen=True)
class Sample:
    """One picture, and its class or captions.

    In a task of associations it is a candidate, with its cue as the caption, label 1 if the two
    belong together, and the instance's number as the group. In a task of pairs it is one of two
    neighbours, of one `pattern`.
    """

    key: str
    rgb: NDArray[np.uint8]
    label: int = -1
    labels: tuple[int, ...] = ()  # of a multi-label task
    captions: tuple[str, ...] = ()
    group: int | None = None
    pattern: str = ""


def samples(folder: Storage, task: TaskFolder) -> Iterator[Sample | Finding]:
    """Yields every sample of a task's shards in order; a Finding in the place of a bad sample."""
    instances = 0  # so far, of a task of associations
    for shard in task.shards:
        where = f"{task.name}/test/{shard}"
        try:
            if not shard.endswith(PARQUET):
                for key, members in _of_tar(folder, where):
                    yield _of_members(key, members, task, f"{where}, key {key}")
            elif task.kind == "association":
                for number, row in enumerate(_of_parquet(folder, where, OF_CUES)):
                    yield from _candidates(row, instances, f"{where}, row {number}")
                    instances += 1
            else:
                columns = OF_PAIRS if task.kind == "pairs" else OF_CAPTIONS
                number = -1
                for number, row in enumerate(_of_parquet(folder, where, columns)):
                    place = f"{where}, row {number}"
                    yield _captioned(f"{shard.removesuffix(PARQUET)}-{number}", row, place)
                if task.kind == "pairs" and number % 2 == 0:
                    found = f"an odd number of rows, {number + 1}"
                    yield Finding(found, where, "put the two of a pair side by side")
        except BROKEN as error:
            yield Finding(f"a shard that cannot be read: {error}", where, "copy it again")


def _of_members(
    key: str, members: dict[str, bytes] | None, task: TaskFolder, place: str
) -> Sample | Finding:
    """Returns a sample of a tar, or what is wrong with it."""
    if members is None:
        most = limit("MAX_TASK_SAMPLE_BYTES")
        return Finding(f"a sample of more than {most:,} bytes", place, "replace it")
    body = next((members[suffix] for suffix in IMAGES if suffix in members), None)
    truth = b"" if task.kind == "unscored" else members.get(TRUTHS.get(task.kind, ""))
    if body is None or truth is None:
        lacks = "picture" if body is None else f"KEY.{TRUTHS[task.kind]}"
        return Finding(f"a sample without a {lacks}", place, "add it, or drop it")
    parts: dict[str, Any] = {}
    if task.is_retrieval:
        parts["captions"] = tuple(filter(None, map(str.strip, text_of(truth).splitlines())))
    elif task.kind == "classification":
        try:
            parts["label"] = label = int(text_of(truth))
        except ValueError:
            return Finding(f"KEY.cls holds {truth[:20]!r}", place, "write a class number")
        if not 0 <= label < len(task.classnames):
            text = f"class {label}, and {CLASSNAMES} names {len(task.classnames)}"
            return Finding(text, place, f"name class n in line n + 1 of {CLASSNAMES}")
        parts["group"] = _group(members.get("npy"), task, place)
    elif task.kind == "multilabel":
        parts["labels"] = _labels(truth, len(task.classnames), place)
    parts["rgb"] = _decoded(body, place)
    wrong = (part for part in parts.values() if isinstance(part, Finding))
    return next(wrong, None) or Sample(key, **parts)


def _decoded(body: Any, place: str) -> NDArray[np.uint8] | Finding:
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.opened import ImageError

    try:
        return decode(body if isinstance(body, bytes) else b"")
    except ImageError as error:
        return Finding(f"a picture that is {error.code}", place, "replace it")


def _labels(data: bytes, classes: int, place: str) -> tuple[int, ...] | Finding:
    """Returns the classes of a picture: those with a number other than 0 in KEY.npy."""
    do = "save one number a class with numpy.save: 1 of each that the picture has, else 0"
    try:
        flag_C = np.load(BytesIO(data), allow_pickle=False).reshape(-1)
        if not np.isin(flag_C, (0, 1)).all():
            raise ValueError
    except (*NO_NUMBER, RecursionError, MemoryError):
        return Finding("KEY.npy names no classes", place, do)
    if len(flag_C) != classes:
        text = f"{len(flag_C)} numbers in KEY.npy, and {CLASSNAMES} names {classes} classes"
        return Finding(text, place, do)
    return tuple(map(int, np.flatnonzero(flag_C)))


def _group(data: bytes | None, task: TaskFolder, place: str) -> int | Finding | None:
    """Returns the group that KEY.npy names: in the listed task's column, else the first."""
    by = task.listed.by if task.listed else None
    if task.listed and not by:
        return None  # its numbers are no part of its rule
    do = "save the picture's numbers with numpy.save, whole and from 0 up"
    if data is None:
        lacks = Finding("a sample without KEY.npy, which says its group", place, do)
        return lacks if by else None
    try:
        number = np.load(BytesIO(data), allow_pickle=False).reshape(-1)[by.column if by else 0]
        group = int(number)
        if group < 0 or group != number:
            raise ValueError
    except (*NO_NUMBER, RecursionError, MemoryError):
        return Finding("KEY.npy names no group", place, do)
    return group


def _captioned(key: str, row: dict[str, Any], place: str) -> Sample | Finding:
    """Returns a sample of a Parquet file of pictures and their captions."""
    texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
    captions = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    rgb = _decoded(row["image"], place)
    pattern = row.get(PATTERN, "")
    if isinstance(rgb, Finding):
        return rgb
    if PATTERN in row and not (pattern and isinstance(pattern, str) and len(captions) == 1):
        text = f"{len(captions)} captions, pattern {pattern!r}"
        return Finding(text, place, "give each picture of a pair one caption and their pattern")
    return Sample(key, rgb, captions=captions, pattern=pattern)


def _candidates(row: dict[str, Any], instance: int, place: str) -> Iterator[Sample | Finding]:
    """Yields one instance's candidates; its cue becomes DataComp's prompt, `A cue` or `An isle`."""
    candidates, right = row["candidates"] or [], set(row["associations"] or [])
    cue = row[CUE].lower() if isinstance(row[CUE], str) else ""
    pictures = row["candidate_images"] or []
    is_whole = bool(cue) and len(candidates) == len(pictures) > 1
    if not is_whole or not 0 < sum(name in right for name in candidates) < len(candidates):
        text = f"{len(candidates)} candidates, {len(pictures)} pictures, {len(right)} associations"
        yield Finding(text, place, "give each a picture, and some of them as associations")
        return
    prompt = f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
    for name, body in zip(candidates, pictures, strict=True):
        rgb = _decoded(body, f"{place}: {name}")
        key, label = f"{instance}/{name}", int(name in right)
        yield rgb if isinstance(rgb, Finding) else Sample(key, rgb, label, (), (prompt,), instance)


def _of_tar(folder: Storage, shard: str) -> Iterator[tuple[str, dict[str, bytes] | None]]:
    """Yields the samples of a tar: neighbours of one key; a repeated suffix begins a new sample.

    None in the place of the members if they are too large together.
    """
    key, members = "", {}  # type: str, dict[str, bytes]
    remaining = most = limit("MAX_TASK_SAMPLE_BYTES")
    with folder.open(shard) as source, tars.opened(source, "r:") as tar:
        for member in tars.members(tar):
            stem, _, suffix = member.name.rpartition("/")[2].partition(".")
            if not member.isfile() or not stem:
                continue
            suffix = suffix.lower()
            if members and (stem != key or suffix in members):
                yield key, members if remaining >= 0 else None
                members, remaining = {}, most
            key, remaining = stem, remaining - member.size
            file = tar.extractfile(member) if remaining >= 0 else None
            members[suffix] = file.read() if file else b""
    if members:
        yield key, members if remaining >= 0 else None


def _of_parquet(folder: Storage, file: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, with these columns; pictures as bytes."""
    with folder.open(file) as source:
        for batch in pq.ParquetFile(source).iter_batches(ROWS, columns=list(names)):
            for row in batch.select(list(names)).to_pylist():  # KeyError without one of them
                yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Returns a picture's bytes of {bytes, path}; lists likewise."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value["bytes"] if isinstance(value, dict) and "bytes" in value else value


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip("\ufeff\n\r ")
