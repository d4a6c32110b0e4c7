"""Writes the rows of every arm to a subset file of its own: DIR/arms/NAME.parquet.

Files are written a shard of the pool at a time; a file with the same origin is kept while its bytes
match the stored digest.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.outputs import digest_of
from clipmill.metadata.schema import REPEATS
from clipmill.metadata.storage import Storage
from clipmill.metadata.subset_file import write_subset
from clipmill.pipeline.bench.listed import read_list
from clipmill.pipeline.bench.pool import Choice, RawRows
from clipmill.pipeline.bench.rows import (
    Chance,
    Every,
    Kept,
    Listed,
    Mixed,
    Rows,
    chances,
    listed,
    texts_bound,
)
from clipmill.pipeline.bench.spec import RAW, Bench
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.terminal import plural

FOLDER = "arms"
MOST_REPEATS = 1_000_000
BINS = 20  # leading bits of the hash histogram, so that few hashes are held at once


@dataclass(frozen=True, kw_only=True)
class ArmRows:
    """The rows of an arm with a picture and a caption, and the samples of an epoch of them.

    `lacking` counts further rows that the stage keeps or the list names, `unknown` listed uids that
    no row of the pool has; `sha256` is of the file.
    """

    made_of: str
    rows: int
    samples: int
    lacking: int
    unknown: int = 0
    sha256: str | None = None  # None: rows without a file, or an older folder


def subset_name(name: str) -> str:
    """Returns the file of an arm's rows, in the bench's folder."""
    return f"{FOLDER}/{name}.parquet"


def random_name(size: int, parent: str = RAW) -> str:
    """Returns the name of the arm with this many random rows of its parent."""
    return f"random_of_{size}" if parent == RAW else f"random_of_{size}_in_{parent}"


def by_chance(name: str) -> str:
    """Returns a random arm's rows in words."""
    _, _, parent = name.partition("_in_")
    return f"as many rows of {parent} by chance" if parent else "as many rows by chance"


@dataclass
class ArmWriter:
    """Writes the subset files; `raw_of` is the digest of the export that holds every row."""

    raw: RawRows
    raw_of: str
    export: PlannedStage
    folder: Storage
    batches: Mapping[str, int]  # largest batch size, by the rows' name
    seed: int = 0
    written: dict[str, ArmRows] = field(default_factory=dict)
    parts: dict[str, Rows] = field(default_factory=dict)

    def write(self, bench: Bench, choices: Mapping[str, Choice]) -> None:
        """Writes all but random arms, by name; RecipeError if one has fewer rows than a batch."""
        rows = self.raw.rows
        self.parts[RAW] = Every()
        if self.raw.held_out:
            self.raw_of = digest([self.raw_of, self.raw.held_out])
            self._put(RAW, Every(), RAW)
        else:
            self.add(RAW, ArmRows(made_of=self.raw_of, rows=rows, samples=rows, lacking=0))
        texts = texts_bound(self.export)
        for name, choice in choices.items():
            kept = Kept(choice, texts)
            made_of = [choice.planned.fingerprint, choice.state.inputs_digest(choice.planned)]
            made_of += [choice.value] if choice.value else []
            self._put(name, kept, made_of)
        for name, source in bench.rows.items():
            if source.kind == "list":
                uids, sha256 = read_list(source.path, name)
                self._put(name, listed(uids), [sha256])
        for name, source in bench.rows.items():
            if source.kind == "mix":
                parts = {part: self.parts[part] for part in source.shares}
                samples = {part: self.written[part].samples for part in parts}
                mixed = Mixed(name, parts, source.shares, samples, self.seed)
                most = max(parts, key=mixed.each)
                if mixed.each(most) > MOST_REPEATS:
                    found = (
                        f"a row of '{most}' would stand {mixed.each(most):.3g} times in an epoch"
                    )
                    do = (
                        f"give weights nearer to the arms' rows: {MOST_REPEATS:,} times is the most"
                    )
                    raise RecipeError(found, f"arm '{name}'", do)
                self._put(
                    name, mixed, [[self.written[part].made_of for part in parts], source.shares]
                )

    def add(self, name: str, arm: ArmRows) -> None:
        """Adds rows that need no file."""
        self.written[name] = arm
        self._refuse_few(name)

    def write_random(self, parents: Mapping[str, str]) -> None:
        """Writes a random arm for each arm that has fewer rows than its parent in `parents`."""
        sizes: dict[str, set[int]] = {}
        for name, parent in parents.items():
            if self.written[name].rows < self.written[parent].rows:
                sizes.setdefault(parent, set()).add(self.written[name].rows)
        for parent, smaller in sizes.items():
            of_parent = [] if parent == RAW else [self.written[parent].made_of]
            names = {size: random_name(size, parent) for size in sorted(smaller)}
            todo = [n for n in names if not self._is_written(names[n], [n, *of_parent])]
            for size, below in zip(todo, self._bounds(todo, self.parts[parent]), strict=True):
                rows = Chance(below, self.seed, self.parts[parent])
                self._put(names[size], rows, [size, *of_parent])
            for name in names.values():  # by size, whichever files an earlier bench has left
                self.written[name] = self.written.pop(name)

    def _bounds(self, sizes: list[int], parent: Rows) -> list[int]:
        """Returns, for each size, the hash below which this many rows of the parent lie.

        Rows of one uid have one hash: where it is the bound, all of them stay out. Reads the uids
        twice: the first pass counts hashes by their leading bits, the second keeps those of the
        bins that contain a bound.
        """
        if not sizes:
            return []
        shift = np.uint64(64 - BINS)
        count_B = np.zeros(1 << BINS, np.int64)
        for number, shard in self.raw.tables():
            bits_N = chances(parent.of(shard, number), self.seed)
            bins, counts = np.unique(bits_N >> shift, return_counts=True)
            count_B[bins.astype(np.int64)] += counts
        before_B = np.cumsum(count_B) - count_B
        bins = np.searchsorted(np.cumsum(count_B), sizes, side="right")
        hashes: dict[int, list[np.ndarray]] = {int(number): [] for number in bins}
        for number, shard in self.raw.tables():
            bits_N = chances(parent.of(shard, number), self.seed)
            for leading, bin_hashes in hashes.items():
                bin_hashes.append(bits_N[bits_N >> shift == leading])
        return [
            int(np.sort(np.concatenate(hashes[int(leading)]))[size - before_B[leading]])
            for size, leading in zip(sizes, bins, strict=True)
        ]

    def _is_written(self, name: str, made_of: object) -> bool:
        """Returns whether the file is stored, unchanged and of the same origin; sets its facts."""
        facts = self.folder.read_json(f"{FOLDER}/{name}.json", ArmRows)
        if facts is None or facts.made_of != self._digest(made_of):
            return False
        self.written[name] = facts
        try:
            stored = self.folder.sha256(subset_name(name))
        except FileNotFoundError:
            return False
        return facts.sha256 in (stored, None)

    def _digest(self, made_of: object) -> str:
        return digest([self.raw_of, self.seed, made_of])

    def _put(self, name: str, rows: Rows, made_of: object) -> None:
        self.parts[name] = rows
        if not self._is_written(name, made_of):
            samples = 0
            named = [np.empty((0, 2), np.uint64)]

            def tables() -> Iterator[pa.Table]:
                nonlocal samples
                for number, shard in self.raw.tables():
                    table = rows.of(shard, number)
                    if isinstance(rows, Listed):
                        named.append(rows.named(self.raw.pool.table(number)))
                    samples += int(pc.sum(table[REPEATS.name]).as_py() or 0)
                    yield table

            with self.folder.scratch(subset_name(name)) as path:
                count = write_subset(path, tables())
                sha256 = digest_of(path)
                self.folder.commit(path, subset_name(name))
            total, unknown = count, 0
            if isinstance(rows, Kept) and not self.raw.held_out:
                total = rows.kept
            elif isinstance(rows, Listed):
                uid_K2 = np.concatenate(named)  # a uid may be of several rows
                unknown = len(rows.uid_U2) - len(listed(uid_K2).uid_U2)
                total = count if self.raw.held_out else len(uid_K2)
            self.written[name] = ArmRows(
                made_of=self._digest(made_of),
                rows=count,
                samples=samples,
                lacking=total - count,
                unknown=unknown,
                sha256=sha256,
            )
            text = json.dumps(asdict(self.written[name]))
            self.folder.put(f"{FOLDER}/{name}.json", text.encode(), point="arm")
        self._refuse_few(name)

    def _refuse_few(self, name: str) -> None:
        """Raises RecipeError for fewer rows than a batch: a row would be its own negative."""
        arm, batch = self.written[name], self.batches.get(name, 1)
        if arm.rows < batch:
            lacking = f", and {arm.lacking:,} without" if arm.lacking else ""
            lacking += f"; uids of no row of the pool: {arm.unknown:,}" if arm.unknown else ""
            raise RecipeError(
                f"{plural(arm.rows, 'row')} with a picture and a caption{lacking};"
                f" a batch has {batch:,}",
                f"arm '{name}'",
                "leave the arm out, or train in smaller batches: --set batch_size=N",
            )
