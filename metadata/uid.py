"""Ids of samples, and random numbers hashed from them."""

import binascii
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Shapes: N rows, K rows of 32 bytes, P purposes.

DIGITS = np.full(256, 255, np.uint8)  # the value of each hex digit; 255 for other bytes
DIGITS[np.frombuffer(b"0123456789", np.uint8)] = range(10)
DIGITS[np.frombuffer(b"abcdefABCDEF", np.uint8)] = [*range(10, 16)] * 2


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
    text = pa.chunked_array([text]) if isinstance(text, pa.Array) else text
    if len(text) and not text.null_count and (uids := _all_from_hex(text)):
        return pa.Array.from_buffers(pa.binary(16), len(text), [None, pa.py_buffer(uids)])
    is_uid_N = np.array(pc.equal(pc.binary_length(text), 32).fill_null(False))
    digits = text.filter(pa.array(is_uid_N)).combine_chunks()
    digit_K32 = DIGITS[np.frombuffer(digits.buffers()[2], np.uint8)].reshape(-1, 32)
    uid_N16 = np.zeros((len(text), 16), np.uint8)
    uid_N16[is_uid_N] = digit_K32[:, ::2] << 4 | digit_K32[:, 1::2]
    is_uid_N[is_uid_N] = (digit_K32 < 16).all(axis=1)
    validity = pa.array(is_uid_N).buffers()[1]
    return pa.Array.from_buffers(pa.binary(16), len(text), [validity, pa.py_buffer(uid_N16)])


def _all_from_hex(text: pa.ChunkedArray) -> bytes | None:
    """Parses text that is uids throughout, seven times as fast; None if any is not."""
    try:
        digits = text.cast(pa.binary()).cast(pa.binary(32)).combine_chunks()
        return binascii.unhexlify(digits.buffers()[1])
    except (pa.ArrowInvalid, binascii.Error):
        return None


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
