"""Ids of samples, and the coins that hang on them."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Shapes: N rows.


def uid_of(url: str | None, text: str | None) -> bytes:
    """First 128 bits of sha256(url, 0, text): the id of a row whose pool has none."""
    joined = (url or "").encode() + b"\0" + (text or "").encode()
    return hashlib.sha256(joined).digest()[:16]


def halves(uid: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """(N, 2) the two big-endian 64-bit halves of each uid: DataComp's `u8,u8`."""
    if isinstance(uid, pa.ChunkedArray):
        uid = uid.combine_chunks() if uid.num_chunks != 1 else uid.chunk(0)
    if uid.null_count:
        raise ValueError(f"{uid.null_count} null uids among {len(uid)}")
    data = np.frombuffer(uid.buffers()[1], np.uint8)[uid.offset * 16 : (uid.offset + len(uid)) * 16]
    return data.reshape(-1, 16).view(">u8").astype(np.uint64)


def from_halves(halves_N2: NDArray[np.uint64]) -> pa.Array:
    """uid column of these halves."""
    data = np.ascontiguousarray(halves_N2, ">u8")
    return pa.Array.from_buffers(pa.binary(16), len(data), [None, pa.py_buffer(data)])


def from_hex(text: pa.ChunkedArray | pa.Array) -> pa.Array:
    """uid column from 32 hex digits, either case; null where it is anything else."""
    import polars as pl  # not while a recipe is planned

    decoded = pl.Series(values=text).str.decode("hex", strict=False)
    whole = decoded.set(decoded.bin.size() != 16, None)
    return whole.to_arrow().cast(pa.binary()).cast(pa.binary(16))


def coin_hash(
    uid: pa.ChunkedArray | pa.Array, *, seed: int, stage: str, purpose: str
) -> NDArray[np.uint64]:
    """(N,) 64 uniform bits of each uid, for one purpose of one recipe stage under one seed."""
    key = hashlib.blake2b(
        "\x1f".join((str(seed), stage, purpose)).encode(), digest_size=16
    ).digest()
    key_hi, key_lo = np.frombuffer(key, ">u8").astype(np.uint64)
    halves_N2 = halves(uid)
    return _mix(_mix(halves_N2[:, 0] ^ key_hi) + (halves_N2[:, 1] ^ key_lo))


def coin(
    uid: pa.ChunkedArray | pa.Array, *, seed: int, stage: str, purpose: str
) -> NDArray[np.float64]:
    """(N,) uniform in [0, 1), a pure function of (seed, stage, purpose, uid)."""
    bits_N = coin_hash(uid, seed=seed, stage=stage, purpose=purpose)
    return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
