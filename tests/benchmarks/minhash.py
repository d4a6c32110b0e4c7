"""MinHash signatures of captions: ours against datasketch's bulk method, and against numpy alone.

    python -m tests.benchmarks.minhash

datasketch gets lists of pieces that are cut and encoded beforehand; ours starts from the captions.
Signatures are equal int for int. numpy hashes and permutes each distinct piece once, which helps
where pieces repeat and not where they don't; so the loops are numba's (see phash.py for its cost).

Aim: 10x datasketch.
Measured (2026-11-25, EPYC, 2 shared cores, load 1, CPU time): 12.6x on characters by fives, 64 a
caption (11.2 to 14.2), 13.7x on words, 9 a caption (13.4 to 14.2): 190,000 and 560,000 captions a
CPU-second. numpy: 0.7x and 1.7x.
"""

import hashlib
from itertools import pairwise
from time import process_time

import numpy as np
import pyarrow as pa
from datasketch import MinHash

from stages.dedup._shingles import Pieces, hashes, pieces, plain
from stages.dedup._signatures import permutations, signatures
from tests.benchmarks.side_by_side import side_by_side

CAPTIONS, VOCABULARY, PERMUTATIONS = 10_000, 20_000, 128


def ours(text: pa.Array, unit: str, size: int) -> np.ndarray:
    found = pieces(plain(text), unit, size)
    return signatures(hashes(found), found.end, PERMUTATIONS, 1)


def theirs(lists: list[list[bytes]]) -> np.ndarray:
    return np.stack([m.hashvalues for m in MinHash.bulk(lists, num_perm=PERMUTATIONS, seed=1)])


def by_numpy(text: pa.Array, unit: str, size: int) -> np.ndarray:
    """Each distinct piece hashed and permuted once, then least ones taken: no compiled loop."""
    found = pieces(plain(text), unit, size)
    every = [piece for one in cut(found) for piece in one]
    number = {piece: i for i, piece in enumerate(dict.fromkeys(every))}
    sha1 = [int.from_bytes(hashlib.sha1(piece).digest()[:4], "little") for piece in number]
    x = np.array(sha1, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    a_K, b_K = permutations(PERMUTATIONS, 1)
    permuted = x[:, None] * a_K + b_K
    order = np.array([number[piece] for piece in every])
    starts = np.concatenate([[0], found.end[:-1]])
    return np.minimum.reduceat(permuted[order], starts, axis=0)


def cut(found: Pieces) -> list[list[bytes]]:
    """The pieces of each text."""
    view, ends = found.utf8.tobytes(), [0, *found.end.tolist()]
    every = [view[a:b] for a, b in zip(found.start.tolist(), found.stop.tolist(), strict=True)]
    return [every[a:b] for a, b in pairwise(ends)]


def captions(rng: np.random.Generator) -> pa.Array:
    """4 to 14 words, some far more common than others: 53 characters on average."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)]
    rank = (rng.pareto(0.6, CAPTIONS * 14) % VOCABULARY).astype(int)
    lengths = rng.integers(4, 15, CAPTIONS)
    return pa.array(
        [" ".join(words[w] for w in rank[i * 14 : i * 14 + n]) for i, n in enumerate(lengths)]
    )


def main() -> None:
    text = captions(np.random.default_rng(0))
    for unit, size in (("character", 5), ("word", 1)):
        found = pieces(plain(text), unit, size)
        lists = cut(found)
        rivals = {
            "datasketch": lambda lists=lists: theirs(lists),
            "numpy": lambda unit=unit, size=size: by_numpy(text, unit, size),
            "ours": lambda unit=unit, size=size: ours(text, unit, size),
        }
        first = rivals["datasketch"]()
        assert all((run() == first).all() for run in rivals.values())
        print(f"{unit} {size}: {len(found.start) / CAPTIONS:.1f} pieces a caption")
        side_by_side(rows=CAPTIONS, rounds=7, clock=process_time, **rivals)


if __name__ == "__main__":
    main()
