"""SharedCaptions: the count of every text is that of a plain dictionary."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXT_LIST
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.dedup.captions import SharedCaptions


def rows(texts: list, sha256: list | None = None, first: int = 0) -> pa.Table:
    """Rows of lists of texts; a uid for each, by number."""
    empty = dict.fromkeys(("source", "model", "prompt_id", "label"))
    lists = [it and [None if t is None else empty | {"text": t} for t in it] for it in texts]
    uids = [number.to_bytes(16, "big") for number in range(first, first + len(texts))]
    columns = {"uid": pa.array(uids, pa.binary(16)), "texts": pa.array(lists, TEXT_LIST)}
    if sha256 is not None:
        columns["sha256"] = pa.array(sha256, pa.string())
    return pa.table(columns)


@pytest.fixture
def count(memory_shards, memory_context):
    def count(*shards: pa.Table, **settings) -> tuple[list, list]:
        ctx = memory_context()
        SharedCaptions(**settings).run(Inputs(rows=memory_shards(*shards)), ctx)
        out = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)
        return out["text_images"].to_pylist(), out["reason"].to_pylist()

    return count


def test_equal_texts_of_different_images_are_counted_together(count):
    texts = [["A dog.", "two  DOGS"], ["a dog."], None, [], ["Two dogs", "a dog.", ""]]
    lists, reason = count(rows(texts[:2]), rows(texts[2:], first=2))
    assert lists == [[3, 2], [3], None, None, [2, 3, None]]
    assert reason == [None, None, "no_text", "no_text", None]
    lists, _ = count(rows(texts[:2]), rows(texts[2:], first=2), exact=True)
    assert lists == [[1, 1], [2], None, None, [1, 2, None]]


def test_copies_of_an_image_count_once_and_without_a_digest_the_uid_tells(count):
    texts = [["x"], ["x"], ["x", "x"], ["x"], ["x"]]
    one, two = "ab" * 32, "cd" * 32
    lists, _ = count(rows(texts, [one, one, two, None, "no hex"]))
    assert lists == [[4], [4], [4, 4], [4], [4]]
    assert count(rows(texts))[0][0] == [5]
    assert count(rows(texts, ["00", "00", "", "", one]))[0][0] == [5]  # no SHA-256: by uid


def test_null_items_keep_their_place(count):
    assert count(rows([[None, "x", None], ["x"]]))[0] == [[None, 2, None], [2]]


def test_one_text_of_four_thousand_images_and_random_ones_equal_a_dictionary(count):
    rng = np.random.default_rng(0)
    texts = [[f"caption {n}" for n in rng.zipf(1.3, rng.integers(0, 4)) % 50] for _ in range(2000)]
    texts += [["the same"]] * 4000
    images = [f"{n:064x}"[::-1] for n in rng.integers(0, 3000, len(texts))]
    have: dict[str, set] = {}
    for row, image in zip(texts, images, strict=True):
        for text in row:
            have.setdefault(text, set()).add(image)
    cuts = [0, 1, 700, 701, 4000, len(texts)]
    shards = [rows(texts[a:b], images[a:b], first=a) for a, b in pairwise(cuts)]
    expected = [[len(have[text]) for text in row] or None for row in texts]
    assert count(*shards)[0] == expected
