"""Split: sentences against a plain loop over rows, by both rules."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.metadata.schema import TEXT_LIST
from clipmill.metadata.uid import coin_hash, mixed
from clipmill.pipeline.stage import Worker
from clipmill.stages.caption.split import Split

UID = pa.array([bytes([n]) * 16 for n in range(256)], pa.binary(16))


def made(texts: list, stage: Split = Split(), **lists) -> dict:  # noqa: B008  # frozen
    uid = UID[: len(texts)]
    columns = {"uid": uid, "text": pa.array(texts, pa.string())}
    columns |= {name: pa.array(column, TEXT_LIST) for name, column in lists.items()}
    worker = Worker(seed=7, stage="sents", device="cpu", threads=1, scratch=None)
    table = stage.open(worker)(pa.table(columns).select(["uid", *(c.name for c in stage.reads)]))
    return table.to_pydict()


def split(text: str | None, **settings) -> list | None:
    (texts,) = made([text], Split(**settings))["captions"]
    return None if texts is None else [it["text"] for it in texts]


def item(text: str | None, **parts) -> dict:
    return {"text": text, "source": "re", "model": "m", "prompt_id": "p@1", "label": "long"} | parts


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A cat. A dog! Is it? Yes", ["A cat.", "A dog!", "Is it?", "Yes"]),
        ("a red car. the blue one", ["a red car.", "the blue one"]),
        ("3.5 m of rope, v2.0", ["3.5 m of rope, v2.0"]),
        (
            "Dr. Smith of Smith & Co. in J. K. Row. Yes.",
            ["Dr. Smith of Smith & Co. in J. K. Row.", "Yes."],
        ),
        ("The U.S. Army, see Fig. 3, No. 5.", ["The U.S. Army, see Fig. 3, No. 5."]),
        (
            "cats, dogs, etc. and so on, etc. The end",
            ["cats, dogs, etc. and so on, etc.", "The end"],
        ),
        ("wait... what... The end…", ["wait... what...", "The end…"]),
        ("猫が座る。犬も。「はい。」終わり", ["猫が座る。", "犬も。", "「はい。」", "終わり"]),
        ("बिल्ली है। कुत्ता", ["बिल्ली है।", "कुत्ता"]),
        ('He said "Go." Then (she left.) No', ['He said "Go."', "Then (she left.)", "No"]),
        ("1. A cat\n2. A dog</s>\r\n  ", ["1. A cat", "2. A dog"]),
        ("www.example.com and a.b", ["www.example.com and a.b"]),
        ("one\x1etwo\x1fthree\x85four", ["one", "two three", "four"]),
        ("... !! A cat.", ["A cat."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert split(text) == sentences


PIECES = st.text(alphabet=" \n.ab</s>!\x1f\u2003", max_size=30)


@settings(deadline=None)
@given(st.lists(PIECES | st.none(), min_size=1, max_size=20))
def test_dreamlips_rule_is_pythons(texts):
    expected = [
        [it.strip() for it in re.split(r"\n|</s>|[.]", text or "") if it.strip()] for text in texts
    ]
    found = made(texts, Split(rule="dreamlip"))
    assert [[it["text"] for it in row or ()] for row in found["captions"]] == expected
    assert [row is None for row in found["captions"]] == [not row for row in expected]
    reason = ["no_text" if text is None else "no_sentence" for text in texts]
    given = [None if row else why for row, why in zip(expected, reason, strict=True)]
    assert found["reason"] == given


def test_neighbours_are_merged_and_the_last_sentence_is_in_one():
    assert split("a. b. c. d", rule="dreamlip", merge=2) == ["a. b", "b. c", "c. d"]
    assert split("a. b", rule="dreamlip", merge=3) == ["a. b"]
    assert split("A.\nB!\nC\nD", merge=2) == ["A. B!", "B! C", "C. D"]
    assert split("猫。犬。鳥", merge=3) == ["猫。犬。鳥"]


def test_windows_do_not_cross_captions():
    captions = [[item("A. B"), item("C")], [item("D")]]
    found = made(["", ""], Split(captions=("re.captions",), merge=2), **{"re.captions": captions})
    assert [[it["text"] for it in row] for row in found["captions"]] == [["A. B", "C"], ["D"]]


def test_most_draws_without_replacement_by_a_coin_of_uid_and_place():
    texts = [". ".join(f"s{n}" for n in range(size)) for size in range(1, 12)] * 20
    all_of = [text.split(". ") for text in texts]
    bits_N = coin_hash(UID[: len(texts)], seed=7, stage="sents", purpose="most")
    expected = []
    for bits, sentences in zip(bits_N, all_of, strict=True):
        coin = mixed(bits + np.arange(len(sentences), dtype=np.uint64))
        expected.append([sentences[n] for n in sorted(np.argsort(coin)[:3])])
    found = made(texts, Split(rule="dreamlip", most=3))
    assert [[it["text"] for it in row] for row in found["captions"]] == expected
    drawn = np.bincount(
        [
            int(it[1:])
            for row, n in zip(expected, range(220), strict=True)
            if n % 11 == 10
            for it in row
        ],
        minlength=11,
    )
    assert drawn.min() > 0  # no place of eleven is always left out


def test_a_caption_of_200_tokens_in_three_sentences_becomes_three_texts_and_a_short_one_stays():
    long = " ".join(f"{name} {'word ' * 49}end." for name in ("One", "Two", "Three"))
    assert len(long.split()) == 153  # about 200 tokens of CLIP
    assert [it.split()[0] for it in split(long, over_words=55)] == ["One", "Two", "Three"]
    assert split("A cat. A dog.", over_words=55) == ["A cat. A dog."]
    assert split("A cat. A dog.", over_words=4) == ["A cat. A dog."]
    assert split("A cat. A dog.", over_words=3) == ["A cat.", "A dog."]


def test_texts_say_where_they_come_from():
    lists = {
        "a.captions": [[item("A cat. A dog"), item(None), item("Short one", label="short")]],
        "b.captions": [[item("...", model="n")]],
    }
    found = made([""], Split(captions=("a.captions", "b.captions"), over_words=2), **lists)
    made_by = {"source": "sents", "model": "m", "prompt_id": "p@1"}
    assert found["captions"] == [
        [
            {"text": "A cat.", "label": "sentence", **made_by},
            {"text": "A dog", "label": "sentence", **made_by},
            {"text": "Short one", "label": "short", **made_by},
            {**made_by, "text": "...", "label": "long", "model": "n"},
        ]
    ]
    assert found["captions_missing"] == [0]
    assert made([""], Split(captions=("b.captions",)), **lists) == {
        "captions": [None],
        "captions_missing": [None],
        "reason": ["no_sentence"],
    }


def test_a_caption_without_a_sentence_is_counted_as_missing():
    lists = {"a.captions": [[item("..."), item("A cat")], None]}
    found = made(["", ""], Split(captions=("a.captions",)), **lists)
    assert found["captions_missing"] == [1, None]
    assert found["reason"] == [None, "no_text"]


def test_long_and_hostile_captions_are_cut_as_any():
    text = "A cat. " * 15_000 + "\u202eignore the above</s>"
    assert len(split(text)) == 15_001
