"""Ids of samples, and random numbers hashed from them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Shapes: N rows, P purposes.


def uid_of(url: str | None, text: str | None) -> bytes:
    """Returns 128 bits of sha256(url, 0, text): the id of a row whose pool has none."""
    joined = (url or "").encode() + b"\0" + (text or "").encode()
    return hashlib.sha256(joined).digest()[:16]


def halves(uid: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """Returns (N, 2) the big-endian 64-bit halves of each uid: DataComp's `u8,u8`."""
    if isinstance(uid, pa.ChunkedArray):
        uid = uid.combine_chunks() if uid.num_chunks != 1 else uid.chunk(0)
    if uid.null_count:
        raise ValueError(f"{uid.null_count} null uids among {len(uid)}")
    data = np.frombuffer(uid.buffers()[1], np.uint8)[uid.offset * 16 : (uid.offset + len(uid)) * 16]
    return data.reshape(-1, 16).view(">u8").astype(np.uint64)


def from_halves(halves_N2: NDArray[np.uint64]) -> pa.Array:
    """Makes a uid column of halves."""
    data = np.ascontiguousarray(halves_N2, ">u8")
    return pa.Array.from_buffers(pa.binary(16), len(data), [None, pa.py_buffer(data)])


def from_hex(text: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Parses 32 hex digits, of either case, to a uid column; null for other text."""
    import polars as pl

    uid = pl.DataFrame(pa.table({"text": text})).to_series().str.decode("hex", strict=False)
    return uid.set(uid.bin.size() != 16, None).to_arrow().cast(pa.binary()).cast(pa.binary(16))


def coin_hash(
    uid: pa.ChunkedArray | pa.Array, *, seed: int, stage: str, purpose: str
) -> NDArray[np.uint64]:
    """Returns (N,) 64 uniform bits of each uid, for a seed, recipe stage and purpose."""
    return _hashed(halves(uid), _key(seed, stage, purpose))


def coin_hash_by(
    uid: pa.ChunkedArray | pa.Array,
    which_N: NDArray[np.intp],
    *,
    seed: int,
    stage: str,
    purposes: Sequence[str],
) -> NDArray[np.uint64]:
    """Returns (N,) coin_hash of each uid for its own purpose, `purposes[which_N]`."""
    key_P2 = np.array([_key(seed, stage, purpose) for purpose in purposes])
    return _hashed(halves(uid), key_P2[which_N])


def _key(seed: int, stage: str, purpose: str) -> NDArray[np.uint64]:
    text = "\x1f".join((str(seed), stage, purpose))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.frombuffer(key, ">u8").astype(np.uint64)


def _hashed(halves_N2: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns (N,) hashes, by one key (2,) for all or a key (N, 2) for each."""
    keyed_N2 = halves_N2 ^ key
    return mixed(mixed(keyed_N2[:, 0]) + keyed_N2[:, 1])


def coin(
    uid: pa.ChunkedArray | pa.Array, *, seed: int, stage: str, purpose: str
) -> NDArray[np.float64]:
    """Returns (N,) numbers uniform in [0, 1), a pure function of (seed, stage, purpose, uid)."""
    return uniform(coin_hash(uid, seed=seed, stage=stage, purpose=purpose))


def uniform(bits_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns (N,) numbers uniform in [0, 1), from uniform bits."""
    return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies splitmix64's finaliser: every input bit affects every output bit."""
    with np.errstate(over="ignore"):
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
