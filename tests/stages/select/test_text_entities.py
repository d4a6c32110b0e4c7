"""TextEntities: which words count, on a few of WordNet's, and files that do not do."""

import re
import weakref

import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.select import text_entities
from clipmill.stages.select.text_entities import TextEntities, Words
from tests.stages.select.wordnet import write_wordnet


@pytest.fixture
def wordnet(tmp_path) -> str:
    return write_wordnet(tmp_path / "wordnet")


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        *(("dog", True), ("dogs", True), ("Dogs", True), ("dog,", False), ("dog's", False)),
        *(("watches", True), ("mice", True), ("mouses", True)),
        *(("men", False), ("photo", False)),  # of a later synset nothing is asked
        ("axes", False),  # an irregular form has its own bases, in their order: an axis is no class
        *(("fishing", False), ("tilted", True), ("doggier", False), ("doggy", True)),
        *(("tiltings", True), ("mousess", True)),  # endings are taken off until a word is known
        *(("doggings", False), ("micees", False)),
        ("", False),
    ],
)
def test_a_word_counts_by_its_first_synset(word, counts, wordnet):
    assert Words(wordnet).counts(word) == counts


def test_a_row_stays_for_its_first_word_that_counts(wordnet, memory_context, memory_shards):
    texts = ["a good\u00a0dog, two\u2003mice and a dog", "men", None, "", "dogs", "dogs"]
    uids = pa.array([(1 + row).to_bytes(16, "big") for row in range(6)], pa.binary(16))
    given = {"keep": [True] * 4 + [False, True], "image_bytes": pa.array([1] * 5 + [None])}
    ctx = memory_context()
    rows = memory_shards(pa.table({"uid": uids, "text": texts, **given}))
    TextEntities(wordnet=wordnet).run(Inputs(rows=rows), ctx)
    (out,) = ctx.stored
    assert out["keep"].to_pylist() == [True] + [False] * 5
    assert out["entity"].to_pylist() == ["mice", None, None, None, "dogs", "dogs"]
    reasons = [None, *["names_no_class"] * 3, "dropped_before", "undefined:image_bytes"]
    assert out["reason"].to_pylist() == reasons


def test_files_that_change_between_two_runs_of_a_process_are_read_again(
    tmp_path, wordnet, memory_context, memory_shards
):
    rows = pa.table({"uid": pa.array([bytes(16)], pa.binary(16)), "text": ["mice"]})
    for kept in (True, False):
        ctx = memory_context()
        TextEntities(wordnet=wordnet).run(Inputs(rows=memory_shards(rows)), ctx)
        assert ctx.stored[0]["keep"].to_pylist() == [kept]
        nouns = tmp_path / "wordnet" / "index.noun"
        nouns.write_text(re.sub("(?m)^mouse .*\n", "", nouns.read_text()))


def test_files_that_are_missing_or_of_another_version_are_refused(tmp_path, monkeypatch):
    with pytest.raises(StageError, match=r"no file '.*index.noun'"):
        TextEntities(wordnet=str(tmp_path)).look()
    other = write_wordnet(tmp_path / "other", "3.1")
    with pytest.raises(StageError, match=r"not of WordNet 3\.0, whose numbers classes have"):
        Words(other)
    text_entities.classes.cache_clear()
    monkeypatch.setattr(text_entities, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="the package 'timm' is not installed"):
        TextEntities(wordnet=other).look()


def test_words_that_are_used_no_more_are_gone_without_a_search_for_garbage(wordnet):
    words = Words(wordnet)
    assert words.counts("dog")
    gone = weakref.ref(words)
    del words
    assert gone() is None
