"""Swap: a caption with its roles turned round, or none."""

import pyarrow as pa

from clipmill.metadata.schema import TEXT_LIST
from clipmill.pipeline.stage import Worker
from clipmill.stages.caption.swap import NEGATIVES, Swap
from clipmill.stages.export._texts import lists_in

WORKER = Worker(seed=7, stage="swap", device="cpu", threads=1, scratch=None)


def made(texts: list, captions: list | None = None) -> dict:
    uid = pa.array([bytes([n]) * 16 for n in range(len(texts))], pa.binary(16))
    columns = {"uid": uid, "text": pa.array(texts, pa.string())}
    stage = Swap() if captions is None else Swap(captions=("re.captions",))
    if captions is not None:
        columns["re.captions"] = pa.array(captions, TEXT_LIST)
    return stage.open(WORKER)(pa.table(columns)).to_pydict()


SWAPS = {
    "dog bites man": "man bites dog",
    "A black dog is chasing a white cat.": "a white cat is chasing a black dog.",
    "a cat  sitting on a mat in a room": "a mat sitting on a cat in a room",
    "on the left, a lamp above the old table": "on the left, the old table above a lamp",
    "men with hats and a girl riding a horse, sunset": (
        "men with hats and a horse riding a girl, sunset"
    ),
    "a cup (blue) on top of a book (red)": None,
    "woman wearing a hat walking away": "a hat wearing woman walking away",
    "a cat isolated on white": "white isolated on a cat",
    "bread on wood | shop": "wood on bread | shop",
    "a man in front of a 3.5 m wall": "a 3.5 m wall in front of a man",
    "a dog near a cat": None,  # the same the other way round
    "built-in oven": None,
    "a bird over it": None,
    "dog on dog": None,
    "in the park": None,
    "a very old and very long small grey wooden house on a hill": None,  # six words: no noun
    "Ein Hund auf der Wiese": None,
    "mat \x1c on\x1d $1": "$1 on mat",
    "": None,
}


def test_two_nouns_change_places_round_the_first_relation():
    found = made([*SWAPS])
    texts = [row and row[0]["text"] for row in found["negatives"]]
    assert dict(zip(SWAPS, texts, strict=True)) == SWAPS


def test_captions_of_lists_keep_model_and_prompt_and_those_without_are_counted():
    item = {"source": "re", "model": "m", "prompt_id": "p@1", "label": "long"}
    texts = ["dog bites man", "a cat", None, "cat on mat"]
    found = made(
        ["", "", ""], [[item | {"text": text} for text in texts], None, [item | {"text": "a"}]]
    )
    turned = item | {"source": "swap", "label": "swapped"}
    assert found == {
        "negatives": [
            [turned | {"text": "man bites dog"}, turned | {"text": "mat on cat"}],
            None,
            None,
        ],
        "captions_missing": [1, None, None],
        "reason": [None, "no_text", "no_roles"],
    }


def test_no_export_takes_negatives_for_captions_unless_they_are_named():
    schema = pa.schema([(NEGATIVES.name, NEGATIVES.dtype)])
    assert lists_in(schema, True) == ()
    assert lists_in(schema, (NEGATIVES.name,)) == ("negatives",)
