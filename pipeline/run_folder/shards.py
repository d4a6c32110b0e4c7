"""Maps the good shards of a stage to their states, made from records on access."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.record import Record, ShardState, state_of
from clipmill.metadata.records import Records, place_in
from clipmill.metadata.storage import Storage

# Shapes: N shards.


class Shards(Mapping[int, ShardState]):
    """The states of good shards by shard number, in order; a mask selects rows of each."""

    def __init__(
        self,
        records: Records,
        shard_N: NDArray[np.int64],
        mask: "Shards | None" = None,
        passes: Mapping[int, list[Record]] | None = None,
    ) -> None:
        """Takes `passes` of some shards in place of all their passes."""
        self.records, self.mask, self._passes = records, mask, passes or {}
        self._shard_N = shard_N
        self._added: dict[int, None] = {}
        self.listed: tuple[tuple[Storage, Shards], ...] = ()  # for display: ShardState.listed

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(N,) shard numbers, in order."""
        if self._added:
            self._shard_N = np.union1d(self._shard_N, np.array([*self._added], np.int64))
            self._added = {}
        return self._shard_N

    def add(self, shard: int) -> None:
        """Adds a good shard, whose records are stored."""
        if shard not in self:
            self._added[shard] = None

    def __contains__(self, shard: object) -> bool:
        return shard in self._added or place_in(self._shard_N, shard) is not None

    def __getitem__(self, shard: int) -> ShardState:
        if shard not in self:
            raise KeyError(shard)
        mask = None if self.mask is None else self.mask[shard]
        if shard in self._passes:
            state = state_of(self._passes[shard], mask)
        else:
            state = self.records.state(shard, mask)
        if not self.listed:
            return state
        listed = tuple((folder, by[shard]) for folder, by in self.listed if shard in by)
        return replace(state, listed=listed)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers.tolist())

    def __len__(self) -> int:
        return len(self._shard_N) + len(self._added)

    @property
    def first(self) -> pa.Table:
        """Records of pass 0, one row a shard."""
        return self.records.first(self.numbers)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N,) number of rows of each shard."""
        return np.asarray(self.first["rows"], np.int64)

    @property
    def rows(self) -> int:
        """Number of rows of all shards."""
        return int(self.sizes.sum())

    def digests(self, shard_N: NDArray[np.int64] | None = None) -> pa.Array:
        """Returns (N,) digests of these shards, or of all."""
        shard_N = self.numbers if shard_N is None else shard_N
        first = self.records.first(shard_N)
        digests = pc.utf8_slice_codeunits(first["sha256"].combine_chunks(), 0, 32)
        is_plain_N = np.asarray(first["data"].is_valid()) & (self.records.passes(shard_N) == 1)
        if self.mask is None and is_plain_N.all():
            return digests
        values = digests.to_pylist()
        for index in range(len(values)) if self.mask is not None else np.flatnonzero(~is_plain_N):
            values[index] = self[int(shard_N[index])].digest
        return pa.array(values, pa.string())


@dataclass(frozen=True)
class StatesByShard(Sequence[Mapping[str, ShardState]]):
    """The states of each shard of a pool, by stage; pickled as a tuple."""

    shards: Mapping[str, Mapping[int, ShardState]]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        number = self.numbers[index]
        return {stage: shards[number] for stage, shards in self.shards.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)
