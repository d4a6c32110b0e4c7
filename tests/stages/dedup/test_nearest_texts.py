"""The nearest of all texts, against sets of Python's."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.dedup import _minhash as nearest_texts
from clipmill.stages.dedup._minhash import TextIndex


def cut(text: str, size: int) -> set[str]:
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_the_nearest_is_that_of_all_pairs_of_sets_but_the_text_itself(block, monkeypatch):
    monkeypatch.setattr(nearest_texts, "BLOCK_BYTES", block)
    rng = np.random.default_rng(0)
    for size in (1, 2, 4):
        texts = ["".join(rng.choice(list("abé"), rng.integers(1, 9))) for _ in range(60)]
        texts = list(dict.fromkeys(texts))
        name_N = rng.permutation(len(texts)).astype(np.uint64)
        few = rng.permutation(len(texts))[:12]
        sets = [cut(text, size) for text in texts]
        expected = [
            max(
                len(sets[s] & sets[n]) / len(sets[s] | sets[n]) for n in range(len(texts)) if n != s
            )
            for s in few
        ]
        text = pa.array(texts, pa.large_string())
        found = TextIndex(text.take(pa.array(few)), name_N[few], "character", size)
        assert found.nearest(text, name_N).tolist() == expected


def test_none_of_none_is_near():
    nothing, name = pa.array([], pa.large_string()), np.empty(0, np.uint64)
    one = pa.array(["one"], pa.large_string())
    assert TextIndex(nothing, name, "word", 1).nearest(one, np.ones(1, np.uint64)).tolist() == []
    assert TextIndex(one, np.ones(1, np.uint64), "word", 1).nearest(nothing, name).tolist() == [0]
