"""CaptionScores: each value of texts that one can check by head, and of the labelled set."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from clipmill.metadata.schema import TEXT_LIST
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import RowFunction, Worker
from clipmill.stages.models import text_features as features
from clipmill.stages.models.filter_network import KIND, Embedder, FilterNetwork
from clipmill.stages.models.image_text import load
from clipmill.stages.models.saved import put_model
from clipmill.stages.score.caption import CaptionScores
from clipmill.stages.select._captions import CUTS, first_failed
from tests.stages.score.judged import recall, values_of
from tests.stages.score.planted import Labelled, labelled

OURS = {"prompts": ()}  # no prompt leaks


def made(*texts: str | None, source: str = "rewrites") -> list:
    empty = dict.fromkeys(("model", "prompt_id", "label"))
    return [None if text is None else {**empty, "text": text, "source": source} for text in texts]


@cache
def opened(stage: CaptionScores) -> RowFunction:
    """A stage, opened once for all tests."""
    return stage.open(Worker(seed=0, stage="checks", device="cpu", threads=1, scratch=Path()))


@pytest.fixture
def scored():
    """The rows of captions (the pool's, then a list), scored."""

    def scored(*rows: tuple[str | None, list | None], **settings) -> dict[str, list]:
        columns = {
            name: values for name, values in settings.items() if isinstance(values, pa.Array)
        }
        settings = {name: it for name, it in settings.items() if name not in columns}
        stage = CaptionScores(**(OURS | settings))
        batch = pa.table(
            {
                "text": pa.array([row[0] for row in rows], pa.string()),
                "captions": pa.array([row[1] for row in rows], TEXT_LIST),
                **columns,
            }
        )
        return opened(stage)(batch).to_pydict()

    return scored


def test_texts_are_the_original_then_the_lists_and_values_lie_parallel(scored):
    out = scored(
        ("a dog", made("A brown dog.", None, "", source="r")),
        (None, made("no original")),
        ("alone", None),
        ("", []),
        (None, None),
        (None, [None]),
    )
    assert [it and [text["text"] for text in it] for it in out["texts"]] == [
        ["a dog", "A brown dog.", ""],
        ["no original"],
        ["alone"],
        [""],
        None,
        None,
    ]
    assert out["texts"][0][0]["source"] == out["texts"][0][0]["label"] == "original"
    assert out["texts"][0][1]["source"] == "r"
    assert out["reason"] == [None] * 4 + ["no_text"] * 2
    assert out["text_words"] == [[2, 3, 0], [2], [1], [0], None, None]
    ratios = [[None, pytest.approx(2 / 3), None], [None], [None], [None], None, None]
    assert out["text_copy_ratio"] == ratios
    for name in out.keys() - {"texts", "reason"}:
        sizes = [it and len(it) for it in out[name]]
        assert sizes == [it and len(it) for it in out["texts"]], name


KNOWN = [  # value, what the text was made from, text, value
    ("copy_ratio", "a red kite over the sea", "A red kite, over the sea!", 1),
    ("copy_ratio", "a red kite over the sea", "the sea under a kite", 2 / 6),
    ("copy_ratio", "红色的风筝", "红色风筝", 4 / 5),
    ("repetition", None, "a red kite over the sea", 0),
    ("repetition", None, "a red kite flies. a red kite flies. so", 4 / 9),
    ("repetition", None, "ha ha ha, a clown", 0),
    ("repetition", None, "red red red red", 3 / 4),
    ("repetition", None, "so it goes" + "!" * 10, 10 / 20),
    ("repetition", None, "1000000000 stars", 0),
    ("is_refusal", None, "I'm sorry, but I can't help with that.", True),
    ("is_refusal", None, "Tut mir leid, das geht nicht.", True),
    ("is_refusal", None, "Sorry, we are closed: a sign", False),
    ("has_disclaimer", None, "As an AI language model, I see a kite.", True),
    ("has_disclaimer", None, "The image shows a kite.", False),
    ("markup", None, "**A kite**", 2),
    ("markup", None, "Caption: a kite", 1),
    ("markup", None, "Sure! A kite", 1),
    ("markup", None, "a kite <3 & a cat", 0),
    ("garbled", None, "a \x07kite\ufffd", 2),
    ("garbled", None, "cafÃ©", 1),
    ("garbled", None, "\u202eetik a", 1),
    ("garbled", None, "👩\u200d🚀 naïve café“", 0),
    ("invented", "kite in Rome, 1987", "A kite in ROME in 1987", 0),
    ("invented", "kite", "Five kites in New York, 3.5 m wide", 3),
    ("invented", "12 kites", "A dozen kites. Some fly", 0),
    ("invented", "ein Drachen", "Ein Drachen steht über dem alten Rathaus der Stadt.", 0),
    ("invented", "kite", "A Red Kite Over The Deep Sea", 0),
    ("is_cut", "a kite", "A red kite flies above the stri", True),
    ("is_cut", "a kite", "A red kite flies above the", True),
    ("is_cut", "a kite", "A red kite flies. The sky is blue and the kite", True),
    ("is_cut", "a kite", "A red kite flies above the street", False),
    ("is_cut", "red, kite", "kite, red, toy, wind", False),
    ("foreign", "a red kite in the sky", "Ein roter Drachen am blauen Himmel", 0.5),
    ("foreign", "ein roter Drachen am Himmel", "Der Drachen fliegt am Himmel", 0),
    ("foreign", "un cerf-volant rouge dans le ciel", "a red kite in the blue sky", 0),
]


def test_values_of_known_captions(scored):
    out = scored(*((source, made(text)) for _, source, text, _ in KNOWN))
    got = [out[f"text_{name}"][row][-1] for row, (name, *_) in enumerate(KNOWN)]
    wrong = {
        (name, source, text): found
        for found, (name, source, text, value) in zip(got, KNOWN, strict=True)
        if not (found >= value if name == "foreign" and value else found == pytest.approx(value))
    }
    assert not wrong


def test_a_leak_is_of_six_words_that_nothing_known_has(scored, tmp_path):
    file = tmp_path / "prompt.yaml"
    file.write_text(
        "# not this\nid: x\ntext: >\n  Say in one short sentence what this\n  image shows.\n"
    )
    settings = {"prompts": (str(file),), "evidence": ("seen",)}
    leaked = "A kite. Say in one short sentence what"
    out = scored(
        ("kite", made(leaked, "say in one short way")),
        ("kite", made(leaked)),
        seen=pa.array([None, ["Say in one short sentence what this"]], pa.list_(pa.string())),
        **settings,
    )
    assert out["text_prompt_leak"] == [[0, 0.75, 0], [0, 0]]
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="no YAML"):
        CaptionScores(prompts=(str(tmp_path / "bad.yaml"),)).look()
    with pytest.raises(StageError, match="gone"):
        CaptionScores(prompts=(str(tmp_path / "gone.yaml"),)).look()


def test_evidence_makes_names_known_and_is_text(scored):
    lists = pa.array([made("Kites of Rio"), None], TEXT_LIST)
    text = "A kite in Rio with Anna"
    out = scored(("kite", made(text)), ("kite", made(text)), other=lists, evidence=("other",))
    assert out["text_invented"] == [[0, 1], [0, 2]]
    stage = CaptionScores(evidence=("phash",))
    with pytest.raises(RecipeError, match="'phash' is of type uint64"):
        stage.check({"phash": pa.uint64()})


def test_clip_scores_are_cosines_by_the_model_and_null_without_an_image(scored):
    image_2D = np.eye(2, 64, dtype=np.float32)
    embedding = pa.array([*image_2D, None], pa.list_(pa.float32(), 64))
    rows = [("a dog", made("a cat")), (None, made("a dog")), ("a dog", None)]
    out = scored(*rows, model="reference", image_embedding=embedding)
    dog, cat = load("reference").embed_texts(["a dog", "a cat"])
    expected = [[dog[0], cat[0]], [dog[1]], [None]]
    for got, wanted in zip(out["text_clip_score"], expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(StageError, match="of 3 numbers, texts' of 64"):
        scored(
            ("a dog", None),
            model="reference",
            image_embedding=pa.array([[1, 0, 0]], pa.list_(pa.float32(), 3)),
        )


@pytest.mark.slow("loads MiniLM")
def test_a_filter_network_reads_captions_through_minilm(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()

    def put(name, path):
        path.rename(tmp_path / "out" / name)

    torch.manual_seed(0)
    sizes = {"image_width": 8, "text_width": features.TextFeatures.width, "width": 16, "words": 9}
    put_model(put, tmp_path, KIND, sizes, FilterNetwork(**sizes).state_dict())
    here = str(tmp_path)
    worker = Worker(seed=0, stage="checks", device="cpu", threads=1, scratch=tmp_path, model=here)
    batch = pa.table(
        {
            "text": ["a dog"],
            "captions": pa.array([made("a cat", "a dog")], TEXT_LIST),
            "image_embedding": pa.array([[1.0, *[0.0] * 15]], pa.list_(pa.float32(), 16)),
        }
    )
    monkeypatch.setattr(features, "TextFeatures", cache(features.TextFeatures))  # loaded once
    score = CaptionScores(model="stage:dfn", **OURS).open(worker)
    both = ["a dog", "a cat"]
    dog, cat = Embedder(here).embed_texts(features.TextFeatures("bfloat16", "cpu", 1)(both), both)
    expected = [dog[0], cat[0], dog[0]]
    assert score(batch)["text_clip_score"].to_pylist() == [pytest.approx(expected, abs=1e-6)]
    copied = CaptionScores(model=f"checkpoint:{here}", **OURS).open(replace(worker, model=None))
    assert copied(batch)["text_clip_score"].to_pylist() == [pytest.approx(expected, abs=1e-6)]


def test_hostile_texts_cost_no_more_than_their_length(scored):
    long = "a red kite " * 9_000
    hostile = ["\0" * 50, "\u202e" * 9, long, "x" * 100_000, "🪁" * 5_000, "\ud7ff\uffff", " \n\t "]
    out = scored((long, made(*hostile)), ("мальчик и змей", made("ילד עם עפיפון", "a kite")))
    assert out["reason"] == [None, None]
    assert out["text_words"][0] == [27_000, 1, 1, 27_000, 1, 1, 1, 0]
    assert out["text_garbled"][0] == [0, 50, 9, 0, 0, 0, 1, 0]
    assert out["text_repetition"][0][3] > 0.9
    assert out["text_repetition"][0][4] == 1


@pytest.mark.slow("scores every labelled caption")
def test_recall_of_each_fault_on_the_half_that_nobody_tuned_on():
    held = recall([it for it in labelled() if it.held])
    for fault, (own, any_) in held.items():  # as docs/captions.md has them, less two points
        assert own >= (0.82 if fault == "cut" else 0.92), (fault, own)
        assert any_ >= (0.82 if fault == "cut" else 0.94), (fault, any_)


def test_false_rejects_on_the_half_that_nobody_tuned_on():
    good = [it for it in labelled() if it.held and it.fault is None]
    reasons = first_failed(values_of(good), CUTS)
    assert (len(reasons) - reasons.null_count) / len(reasons) <= 0.04


@pytest.mark.parametrize("end", [".", ""])
def test_rewrites_that_people_would_write_pass_with_and_without_a_full_stop(end):
    files = (Path(__file__).parents[3] / "clipmill" / "stages" / "caption" / "banks").glob("*.yaml")
    pairs = [pair for file in files for pair in yaml.safe_load(file.read_text())["pairs"]]
    good = [Labelled(None, it["source"], it["target"].rstrip(".") + end, False) for it in pairs]
    reasons = first_failed(values_of(good), CUTS)
    assert len(good) >= 60
    assert len(good) - reasons.null_count <= 3


@pytest.mark.parametrize(
    "text", ["a man is driving a car", "a boat on the sea", "a cup of tea", "a lamp by the sofa"]
)
def test_a_caption_that_ends_in_a_plain_word_does_not_break_off(scored, text):
    assert scored(("a photo", made(text)))["text_is_cut"] == [[False, False]]


def test_web_captions_pass_as_they_are():
    texts = [
        "women holding hands: medium-light skin tone, light skin tone",
        "👨🏾\u200d🦲 Mann: dunkle Hautfarbe, Glatze",
        "flag: St. Vincent & Grenadines icon (Public Gallery)",
        "Red apple | Free Icons",
        "ต้นคริสต์มาส, คริสต์มาส",
        "HAL 9000, AI, artificial intelligence, movie, film",
        "letter x",
    ]
    own = [Labelled(None, text, text, False) for text in texts]
    assert first_failed(values_of(own), CUTS).to_pylist() == [None] * len(own)
