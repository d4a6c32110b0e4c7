"""Stores answers of `recorded` stages in the run folder, so that no request is sent twice.

answers/new/<shard>-<digest>.answers    a worker's answers of 1 s, later merged by shard
answers/packed/<digest>.answers         answers of earlier runs, packed by the driver

All files have the format of metadata/answers.py, are named by their content and never change. A
worker merges its files of a shard into one; the next run's driver merges those of all shards. Files
are deleted only after the merged file is stored, so a kill between the two leaves answers twice and
loses none. No index lists the files: the folder is listed.
"""

import contextlib
import hashlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

from clipmill.metadata.answers import (
    AnswersFile,
    Pair,
    from_bytes,
    merged,
    open_local,
    open_remote,
    write_answers,
    write_scratch,
)
from clipmill.metadata.storage import Entry, Storage
from clipmill.pipeline.errors import LostLockError

FOLDER, NEW, PACKED, ENDING = "answers", "new", "packed", ".answers"
NAME = re.compile(r"(new/\d+-|packed/)[0-9a-f]{32}\.answers")
STORE_S = 1.0  # a kill loses the answers of at most this long
MOST_SMALL = 64  # files of one second each, before they are merged into one
MOST_BYTES = 16 << 20  # of answers in memory
AT_ONCE = 64  # files that are merged at once


class StoredAnswers:
    """One worker's view of a run's answers: implements `Answers`. Threads may share it.

    Sees answers stored before the first look-up, its own, and those that a dead worker stored for
    the current shard. Its own are stored every second as a small file, and stay in memory (`fresh`)
    until a shard's small files are merged into one. Who needs both locks takes `_storing` first.
    Once open, a look-up takes none: it reads `_fresh` before `_copies`, and a merge adds to
    `_copies` before it drops from `_fresh`.
    """

    def __init__(self, folder: Storage) -> None:
        self.folder = folder
        self._storing = threading.RLock()  # held to store, merge or look for files
        self._adding = threading.Lock()
        self._fresh: dict[bytes, bytes] = {}  # waiting, or in small files
        self._fresh_bytes = 0
        self._waiting: dict[bytes, bytes] = {}  # not stored yet
        self._small: list[str] = []  # names of files, each of one second
        self._timer: threading.Timer | None = None
        self._shard = 0
        self._is_open = False
        self._seen: set[str] = set()  # names in new/
        self._packed: tuple[AnswersFile, ...] = ()
        # Copies of what new/ holds, on scratch disk, each over twice as large as the next.
        self._copies: tuple[AnswersFile, ...] = ()

    def begin(self, shard: int) -> None:
        """Makes this the current shard, and reads what a dead worker stored for it."""
        self._shard = shard
        if self._is_open:
            with self._storing:
                self._read_new(f"{shard:06d}-")

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the answer to each key; None for one that is not known."""
        if not self._is_open:
            self._open()
        return [self._find(key) for key in keys]

    def put(self, key: bytes, answer: bytes) -> None:
        """Adds an answer, to be stored within STORE_S."""
        with self._adding:
            if key in self._fresh:  # a worker's first answer stays
                return
            self._fresh[key] = self._waiting[key] = answer
            self._fresh_bytes += len(answer)
            if self._timer is None:
                self._timer = after(STORE_S, self.store)

    def flush(self) -> None:
        """Stores waiting answers, and merges the shard's files into one."""
        self.store()
        self._merge()

    def _find(self, key: bytes) -> bytes | None:
        """Returns the smallest known answer (bytewise), so that no clock decides."""
        found = [self._fresh.get(key), *(file.find(key) for file in (*self._copies, *self._packed))]
        return min((answer for answer in found if answer is not None), default=None)

    # Storing

    def store(self) -> None:
        """Stores the waiting answers as one file; after an error they wait for the next call."""
        with self._storing:
            with self._adding:
                timer, self._timer = self._timer, None
                pairs, self._waiting = self._waiting, {}
            if timer:
                timer.cancel()
            if not pairs:
                return
            try:
                self._small.append(_put(self.folder, self._shard, pairs))
            except BaseException:
                with self._adding:
                    self._waiting = pairs | self._waiting
                    self._timer = self._timer or after(STORE_S, self.store)
                raise
            self._seen.add(self._small[-1])
            if len(self._small) >= MOST_SMALL or self._fresh_bytes >= MOST_BYTES:
                self._merge()

    def _merge(self) -> None:
        """Merges the shard's small files into one, and drops its answers from memory."""
        with self._storing:
            with self._adding:
                pairs = {k: a for k, a in self._fresh.items() if k not in self._waiting}
            if not pairs:
                return
            copies = _with_pairs(self._copies, sorted(pairs.items()))
            name = self._small[0]
            if len(self._small) > 1:
                name = _put(self.folder, self._shard, pairs)
                self._seen.add(name)
            for small in self._small:
                if small != name:
                    self.folder.delete(small)
            self._small, self._copies = [], copies
            with self._adding:
                for key in pairs:
                    del self._fresh[key]
                self._fresh_bytes = sum(map(len, self._fresh.values()))

    # Finding

    def _open(self) -> None:
        with self._storing:
            if not self._is_open:
                self._read_new("")
                self._read_new("")  # a listing during a merge may show neither old nor new files
                files = [file for file in all_files(self.folder) if file.name.startswith(PACKED)]
                self._packed = tuple(_all_opened(self.folder, files))
                self._is_open = True

    def _read_new(self, prefix: str) -> None:
        """Copies unseen files in new/ whose names begin with `prefix` to scratch disk."""
        while True:
            listed = [file.name for file in all_files(self.folder)]
            matching = [name for name in listed if name.startswith(f"{NEW}/{prefix}")]
            unseen = [name for name in matching if name not in self._seen]
            if not unseen:
                return
            names: list[str] = []
            files: list[AnswersFile] = []
            for name in unseen:
                names.append(name)
                data = self.folder.read_if_there(name)
                if data is not None:  # else its worker has merged it: the next listing shows where
                    files.append(from_bytes(data, damage_reporter(self.folder, name)))
                size = sum(file.size for file in files)
                if len(names) == AT_ONCE or size > MOST_BYTES or name == unseen[-1]:
                    self._copies = _with_pairs(self._copies, merged(files))
                    self._seen.update(names)
                    names, files = [], []


def pack(folder: Storage) -> None:
    """Merges the files of new/ into one, with files of packed/ of at most twice their size.

    Nobody else may write answers meanwhile. With n answers, each is copied O(log n) times, and
    packed/ has O(log n) files.
    """
    by_size = sorted(all_files(folder), key=lambda file: file.size)
    files = [file for file in by_size if file.name.startswith(NEW)]
    size = sum(file.size for file in files)
    for file in by_size:
        if file.name.startswith(PACKED) and file.size <= 2 * size:
            files.append(file)
            size += file.size
    if size:
        merge_files(folder, files)


def all_files(folder: Storage) -> list[Entry]:
    """Lists the files of answers, with names relative to `folder`."""
    return [entry for entry in folder.entries(below=True) if NAME.fullmatch(entry.name)]


def digest_of(name: str) -> str:
    """Returns the first 32 hex digits of a file's SHA-256, from its name."""
    return name.removesuffix(ENDING)[-32:]


def merge_files(folder: Storage, files: Sequence[Entry]) -> None:
    """Merges files into one in packed/, without their damaged blocks, and deletes them."""
    scratch: tuple[AnswersFile, ...] = ()  # all but the last AT_ONCE files, so that few are open
    early, late = files[:-AT_ONCE], files[-AT_ONCE:]
    for start in range(0, len(early), AT_ONCE):
        some = early[start : start + AT_ONCE]
        scratch = _with_pairs(scratch, merged(_all_opened(folder, some)))
    sources = (*scratch, *_all_opened(folder, late))
    with folder.scratch(f"{PACKED}/pack") as path:
        with path.open("wb") as writing:
            write_answers(merged(sources), writing)
        with path.open("rb") as reading:
            digest = hashlib.file_digest(reading, "sha256").hexdigest()
        name = f"{PACKED}/{digest[:32]}{ENDING}"
        folder.commit(path, name, "answers")
    for entry in files:
        if entry.name != name:
            folder.delete(entry.name)


def opened(folder: Storage, name: str, size: int) -> AnswersFile:
    """Opens a file of answers, local or remote."""
    on_damage = damage_reporter(folder, name)
    if folder.is_local:
        return open_local(folder.locate(name), on_damage)
    return open_remote(folder, name, size, on_damage)


def damage_reporter(folder: Storage, name: str) -> Callable[[str], None]:
    """Returns a function that prints on standard error that the file is damaged."""

    def report(what: str) -> None:
        print(f"{folder}/{name}: {what}; its answers are asked for again", file=sys.stderr)

    return report


def after(wait_s: float, work: Callable[[], None]) -> threading.Timer:
    """Does the work in a thread after `wait_s`; storage errors are left to the next flush."""

    def quietly() -> None:
        with contextlib.suppress(OSError, LostLockError):
            work()

    timer = threading.Timer(wait_s, quietly)
    timer.daemon = True
    timer.start()
    return timer


def _all_opened(folder: Storage, files: Sequence[Entry]) -> list[AnswersFile]:
    return [opened(folder, file.name, file.size) for file in files]


def _with_pairs(scratch: tuple[AnswersFile, ...], pairs: Iterable[Pair]) -> tuple[AnswersFile, ...]:
    """Adds sorted pairs as a scratch file; files of like size are merged, so they stay few."""
    files = [*scratch, write_scratch(pairs)]
    while len(files) > 1 and files[-2].size <= 2 * files[-1].size:
        files[-2:] = [write_scratch(merged(files[-2:]))]
    return tuple(files)


def _put(folder: Storage, shard: int, pairs: dict[bytes, bytes]) -> str:
    """Stores pairs as an object named by its content; returns the name."""
    file = io.BytesIO()
    write_answers(sorted(pairs.items()), file)
    data = file.getvalue()
    name = f"{NEW}/{shard:06d}-{hashlib.sha256(data).hexdigest()[:32]}{ENDING}"
    folder.put(name, data, "answers")
    return name
