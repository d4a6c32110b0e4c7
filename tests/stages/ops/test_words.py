"""Words of captions as hashed bags, beside a loop over each."""

import random
import re
import zlib

import numpy as np
import pyarrow as pa

from clipmill.stages.models.filter_network import word_bags

TEXTS = ["A cat, a DOG", "", " -- ", "猫が好き é\u0301 naïve_2", "x" * 10_000, "\0 \u202e 🪁 b"]


def test_words_are_those_of_a_loop_in_lower_case():
    chance = random.Random(0)
    texts = TEXTS + [" ".join(chance.choices(["a", "Cat", "dog's", "7"], k=n)) for n in range(40)]
    bags = word_bags(texts, 50)
    wanted = [[zlib.crc32(it.encode()) % 50 for it in re.findall(r"\w+", t.lower())] for t in texts]
    found = np.split(bags.bucket_W, bags.starts()[1:])
    plain = [i for i, text in enumerate(texts) if text.isascii()]  # \w of others is Rust's own
    assert [found[i].tolist() for i in plain] == [wanted[i] for i in plain]
    assert bags.count_N.tolist() == [len(it) for it in found]


def test_nulls_chunks_and_nothing_at_all():
    chunks = pa.chunked_array([["a b", None], [], ["b"]], pa.string())
    bags = word_bags(chunks, 2048)
    assert bags.count_N.tolist() == [2, 0, 1]
    assert bags.bucket_W[1] == bags.bucket_W[2] != bags.bucket_W[0]
    for nothing in ([], [None], [""]):
        assert word_bags(pa.chunked_array([nothing], pa.string()), 9).bucket_W.tolist() == []
