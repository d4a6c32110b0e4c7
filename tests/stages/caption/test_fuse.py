"""caption.fuse: two captions, one sentence; refusals are asked again."""

import asyncio
from collections import Counter

import pyarrow as pa
import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.metadata.schema import TEXT_LIST
from clipmill.stages.caption.fuse import Fuse, fused
from clipmill.stages.models.asking import is_reply
from clipmill.stages.models.endpoint import Endpoint
from clipmill.stages.models.generator import Asker
from tests.stages.caption.streaming import Counted, rows_of, run, worker


def made(*texts):
    return [{"text": text, "source": "seen", "model": "m", "label": "short"} for text in texts]


def batch_of(texts, lists):
    return rows_of(text=pa.array(texts, pa.string()), captions=pa.array(lists, TEXT_LIST))


def test_every_made_caption_is_joined_with_the_pools():
    rows = run(
        Fuse(model="reference"),
        batch_of(
            ["Bruno at the lake", "Old mill"], [made("a dog swims", "a wet dog"), made("x y")]
        ),
    )
    assert [len(row["captions"]) for row in rows] == [2, 1]
    assert [row["captions_missing"] for row in rows] == [0, 0]
    first = rows[0]["captions"][0]
    assert {'"Bruno', 'lake".', "dog"} <= set(first["text"].split())
    assert (first["source"], first["model"], first["label"]) == ("made", "reference", "fused")
    assert first["prompt_id"].startswith("veclip@")


def test_lists_are_read_in_the_order_in_which_they_are_named():
    batch = batch_of(["Old mill"], [made("one two")]).append_column(
        "long.captions", pa.array([made("three four")], TEXT_LIST)
    )
    [row] = run(Fuse(model="reference", captions=("long.captions", "captions")), batch)
    assert "three" in row["captions"][0]["text"]
    assert "one" in row["captions"][1]["text"]


def test_cores_for_its_server_are_the_workers_and_change_nothing_that_is_stored():
    many = Fuse(model="smollm2", cpus=4)
    assert many.resources.cpus == 4
    assert settings_of(many) == settings_of(Fuse(model="smollm2"))


def test_a_row_that_lacks_a_caption_is_null_and_says_which():
    rows = run(
        Fuse(model="reference"),
        batch_of([None, "\n", "a", "a", "a"], [made("b")] * 2 + [None, [], made(" ", "<image>")]),
    )
    assert [row["reason"] for row in rows] == [
        *("no_text", "empty_text"),
        *("no_captions", "no_captions", "no_captions"),
    ]
    assert {row["captions_missing"] for row in rows} == {None}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m very sorry, I see no image",
        "I am unable to see the image.",
        "I cannot describe people.",
        "I can't tell what this is",
        "As an AI language model, I have no eyes.",
        "Sorry, that is not possible.",
        "Unfortunately, the image is blurred.",
        "Sure, here is the sentence:",
        "Sure! A dog.",
        "Certainly! A dog runs.",
        "Of course. A dog runs.",
        "Here is the combined sentence: a dog",
        "Here's a short caption: a dog",
        "Please provide the image.",
        "My apologies, there is none.",
    ],
)
def test_refusals_and_courtesies_are_no_captions(text):
    assert is_reply(text)


@pytest.mark.parametrize(
    "text",
    [
        "A dog runs over the beach.",
        "Surely the oldest mill in Kent",
        "Here is where the river ends",
        "Please do not feed the ducks sign",
        "I love New York sticker",
        "Sorrel horse in a field",
        "Great grey owl on a branch",
        "As an adult, the bird is white",
        "Okayama castle at night",
        "We are the champions poster",
    ],
)
def test_captions_are_no_replies(text):
    assert not is_reply(text)


def test_refusals_are_asked_again_with_the_next_candidate():
    """A model in this process refuses what is said of mills twice, of what is odd always."""
    asked: Counter[str] = Counter()

    def reply(path, body):
        prompt = body["messages"][-1]["content"]
        asked[prompt] += 1
        text = "A wet dog at the old mill."
        if "odd" in prompt or ("mill" in prompt and asked[prompt] < 3):
            text = "I'm sorry, but I cannot see the image." if asked[prompt] % 2 else "Sure! A dog."
        return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    settings = Fuse(model="reference")
    at = worker()
    asker = Asker(
        Endpoint(url="", model="m", identity="m", inside=reply),
        at,
        decoding=settings.decoding,
        limits=settings.limits,
        form="chat",
        where="m",
    )
    batch = batch_of(["Old mill", "odd", "odd mill"], [made("a wet dog")] * 2 + [made("x", "dog")])
    rows = asyncio.run(fused(batch, settings=settings, asker=asker, worker=at)).to_pylist()
    assert [made["text"] for made in rows[0]["captions"]] == ["A wet dog at the old mill."]
    assert rows[1] == {"captions": None, "captions_missing": 1, "reason": "no_caption_in_answer"}
    assert rows[2] == {"captions": None, "captions_missing": 2, "reason": "no_caption_in_answer"}
    assert list(asked.values()) == [3, 3, 3, 3]


def test_other_settings_ask_only_for_what_is_new():
    answers = Counted()
    at = worker(answers=answers)
    batch = batch_of(["Old mill"], [made("a b", "c d")])
    run(Fuse(model="reference"), batch, at=at)
    run(Fuse(model="reference", attempts=5), batch, at=at)
    assert answers.asked == 2
    run(Fuse(model="reference", prompt="afc"), batch, at=at)
    assert answers.asked == 4
