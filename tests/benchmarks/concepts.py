"""Matching and balancing beside the published ways: the same ids, the same probabilities.

    python -m tests.benchmarks.concepts [full | ENTRIES ...]    20,000; full: 500,000 too

The published matcher is pyahocorasick over spaced entries, one caption after the other; the
published balancing is a loop over captions and their entries. Captions are drawn by frequency from
the list, 12 entries each with some punctuation between them, as in web captions.

2026-11-25, two shared cores at load 6, CPU time, 20,000 captions, median of 5 (least to greatest):
    matching   20,000 entries  3.2x pyahocorasick (2.9 to 5.3);  ahocorasick_rs 1.0x
              500,000 entries  3.5x (3.3 to 6.1), 42 MB to 136 MB;  ahocorasick_rs 1.2x
    balancing  20,000 entries  9.0x the published loop (8.1 to 9.6)
              500,000 entries  6.7x (6.2 to 7.4)
Lost: the same by NumPy alone (running sums of bytes, a stretch's hash by subtraction) 0.8x to 1.3x.
"""

import random
import time

import ahocorasick
import ahocorasick_rs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.concepts.load import concept_list, of_entries
from clipmill.stages.annotate._spacing import padded, spaced
from clipmill.stages.annotate._substrings import Finder
from clipmill.stages.select.balance import Draw, Pairs
from tests.benchmarks.side_by_side import begin, side_by_side

CAPTIONS = 20_000
BATCH = 4096
LENGTH = 12  # words a caption
GLUE = [" "] * 12 + [", ", ". ", "-", " & "]
T = 200


def made_entries(count: int, rng: np.random.Generator) -> list[str]:
    """Half words, a third pairs, the rest triples, all of one vocabulary."""
    letters = rng.integers(97, 123, (count, 9)).astype(np.uint8)
    letters[np.arange(9) >= rng.integers(3, 10, count)[:, None]] = 0
    words = list(dict.fromkeys(letters.view("S9").ravel().astype(str).tolist()))
    heads = words[: max(100, len(words) // 50)]
    entries = words[: count // 2]
    while len(entries) < count:
        many = 2 + (len(entries) % 5 > 2)
        entries.append(" ".join(heads[i] for i in rng.integers(0, len(heads), many)))
    return list(dict.fromkeys(entries))


def made_captions(entries: list[str], rng: np.random.Generator) -> list[str]:
    """Entries by Zipf's law, some glued by punctuation."""
    rank = np.minimum(rng.zipf(1.3, (CAPTIONS, LENGTH)), len(entries)) - 1
    glue = rng.integers(0, len(GLUE), rank.shape)
    return [
        "".join(entries[e] + GLUE[g] for e, g in zip(row, join, strict=True))
        for row, join in zip(rank.tolist(), glue.tolist(), strict=True)
    ]


def published_spacing(text: str) -> str:
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        text = text.replace(blank, " ")
    return text


def main(*sizes: int) -> str:
    for size in sizes:
        ids, matching = compare(size)
        balancing = balance(ids, size)
    return f"matching {matching}, balancing {balancing} of the published ways"


def compare(count: int) -> tuple[pa.ListArray, str]:
    """The ids of all captions, and how much faster ours are found."""
    rng = np.random.default_rng(0)
    concepts = concept_list(of_entries(made_entries(count, rng)))
    entries = concepts.entries.to_pylist()
    captions = made_captions(entries, rng)
    texts = pa.array(captions)

    Finder(padded(concepts.entries[:9], "metaclip")).find(spaced(texts[:9], "metaclip"))  # compiled
    start = time.process_time()
    finder = Finder(padded(concepts.entries, "metaclip"))
    print(
        f"{len(entries):,} entries; beginnings: {time.process_time() - start:.1f} s to build,",
        end="",
    )
    print(f" {finder.size_bytes / 1e6:.0f} MB;", end="")
    start = time.process_time()
    automaton = ahocorasick.Automaton()
    for place, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", (place, f" {entry} "))
    automaton.make_automaton()
    size = automaton.get_stats()["total_size"] / 1e6  # without the tuples that it holds
    print(f" pyahocorasick: {time.process_time() - start:.1f} s, {size:.0f} MB")
    rust = ahocorasick_rs.AhoCorasick([f" {entry} " for entry in entries])

    def arrays() -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            finder.find(spaced(texts[start : start + BATCH], "metaclip"))
            for start in range(0, CAPTIONS, BATCH)
        ]

    def published() -> list[list[int]]:
        out = []
        for caption in captions:
            ids = set()
            for _, (place, _) in automaton.iter(published_spacing(caption)):
                ids.add(place)
            out.append(list(ids))
        return out

    def in_rust() -> list[list[int]]:
        return [
            list(
                {
                    m[0]
                    for m in rust.find_matches_as_indexes(published_spacing(it), overlapping=True)
                }
            )
            for it in captions
        ]

    expected = [sorted(ids) for ids in published()]
    found: list[list[int]] = [[] for _ in captions]
    for number, (count_N, concept_M) in enumerate(arrays()):
        parts = np.split(concept_M, np.cumsum(count_N)[:-1])
        found[number * BATCH : number * BATCH + len(parts)] = [part.tolist() for part in parts]
    assert found == expected == [sorted(ids) for ids in in_rust()]

    print(f"matching, {sum(map(len, found)) / CAPTIONS:.1f} concepts a caption")
    ratios = side_by_side(
        CAPTIONS,
        5,
        time.process_time,
        pyahocorasick=published,
        ahocorasick_rs=in_rust,
        beginnings=arrays,
    )
    return pa.array(found, pa.list_(pa.int32())), ratios["beginnings"]


def balance(ids: pa.ListArray, entries: int) -> str:
    """How much faster ours are balanced."""
    lists = ids.to_pylist()
    uids = np.random.default_rng(0).bytes(16 * len(ids))
    uid = pa.Array.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(uids)])
    rows = pa.table({"uid": uid, "concept_ids": ids})
    rows = rows.filter(pc.greater(pc.list_value_length(ids), 0))

    def drawn(matched: list[int], entry_prob: np.ndarray) -> bool:
        return any(random.random() < entry_prob[entry] for entry in matched)

    def published() -> tuple[np.ndarray, int]:
        count_E = np.zeros(entries, np.uint64)
        for matched in lists:
            for entry in matched:
                count_E[entry] += 1
        prob_E = T / np.maximum(count_E, T)
        return prob_E, sum(drawn(matched, prob_E) for matched in lists)

    def ours() -> tuple[np.ndarray, int, np.ndarray]:
        pairs = Pairs.of(rows)
        weight_E = np.bincount(pairs.concept, minlength=entries).astype(np.float64)
        draw = Draw(seed=0, stage="it", weight=weight_E)
        prob_E = draw.probability(T)
        kept = int((pairs.least(draw.of(rows, pairs)) < T).sum())
        return prob_E, kept, pairs.keep_probability(prob_E)

    (their_E, theirs), (prob_E, kept, chance_N) = published(), ours()
    np.testing.assert_array_equal(prob_E, their_E)
    closed_form = [1 - np.prod(1 - their_E[matched]) for matched in lists if matched]
    np.testing.assert_allclose(chance_N, closed_form, rtol=1e-12)
    sigma = np.sqrt((chance_N * (1 - chance_N)).sum())
    assert max(abs(size - chance_N.sum()) for size in (kept, theirs)) < 5 * sigma
    print("balancing: counts, probabilities, draws; arrays: keep_probability too")
    ratios = side_by_side(len(ids), 5, time.process_time, published=published, arrays=ours)
    return ratios["arrays"]


if __name__ == "__main__":
    begin(main, quick=(20_000,), full=(20_000, 500_000))
