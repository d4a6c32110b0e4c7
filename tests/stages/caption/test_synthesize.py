"""caption.synthesize: what is sent of an image, and which answers stay."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.metadata.schema import IMAGE, IMAGE_EMBEDDING, TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.caption.synthesize import Sampled, Synthesize
from clipmill.stages.models.prompts import load_prompt
from clipmill.stages.models.reference import Reference
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.encoded import encode
from clipmill.stages.ops.vectors.matrices import from_matrix
from tests.stages.caption.streaming import Counted, rows_of, run, worker

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200)}
IMAGES = [encode(np.full((30, 60, 3), rgb, np.uint8), "png", 3) for rgb in COLOURS.values()]


def batch_of(images=IMAGES, texts=("a", "b", "c")) -> pa.Table:
    """Rows with the embedding that the reference makes of each image."""
    seen = [IMAGES[0] if image is None else image for image in images]
    vector_ND = Reference().embed_images([decode(image) for image in seen])
    return rows_of(
        image=pa.array(images, pa.binary()),
        text=pa.array(texts[: len(images)], pa.string()),
        image_embedding=from_matrix(vector_ND),
    )


def test_every_prompt_gives_a_text_of_the_image_with_its_label():
    stage = Synthesize(model="reference", prompts=("short", "long"))
    rows = run(stage, batch_of())
    for colour, row in zip(COLOURS, rows, strict=True):
        assert (row["captions_missing"], row["reason"]) == (0, None)
        assert [made["label"] for made in row["captions"]] == ["short", "long"]
        ids = [load_prompt(name, "prompts").prompt_id for name in ("short", "long")]
        assert [made["prompt_id"] for made in row["captions"]] == ids
        assert all(colour in made["text"] for made in row["captions"])
        assert all("60 by 30" in made["text"] for made in row["captions"])
        assert {(made["source"], made["model"]) for made in row["captions"]} == {
            ("made", "reference")
        }


def test_the_image_is_sent_at_the_models_side():
    [row, *_] = run(Synthesize(model="reference", image_size=20), batch_of())
    assert "20 by 10 pixels" in row["captions"][0]["text"]


def test_constants_are_the_papers():
    given = {name: value for name, value in vars(Sampled()).items() if value is not None}
    assert given == {
        **{"temperature": 0.75, "top_k": 50, "min_tokens": 5},
        **{"max_tokens": 1024, "stop": ()},
    }


def test_a_prompts_length_cuts_the_answer(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("id: three\nlabel: short\nmax_tokens: 3\ntext: What is it?\n")
    [row, *_] = run(Synthesize(model="reference", prompts=(str(path),)), batch_of())
    assert len(row["captions"][0]["text"].split()) == 3
    assert row["captions"][0]["prompt_id"].startswith("three@")


def test_all_candidates_stay_or_the_one_that_fits_best():
    batch = batch_of()
    every = run(Synthesize(model="reference", candidates=5), batch)
    best = run(Synthesize(model="reference", candidates=5, keep="best", best_by="reference"), batch)
    image_ND = np.stack(batch["image_embedding"].to_pylist())
    for row, one, image_D in zip(every, best, image_ND, strict=True):
        texts = [made["text"] for made in row["captions"]]
        assert len(texts) == 5
        assert len(set(texts)) > 1
        score_C = Reference().embed_texts(texts) @ image_D
        assert [made["text"] for made in one["captions"]] == [texts[int(np.argmax(score_C))]]
        assert one["captions_missing"] == 0


def test_another_number_of_candidates_asks_only_for_the_new_ones():
    answers = Counted()
    at = worker(answers=answers)
    run(Synthesize(model="reference", candidates=2), batch_of(), at=at)
    assert answers.asked == 6
    run(Synthesize(model="reference", candidates=3, prompts=("short", "long")), batch_of(), at=at)
    assert answers.asked == 6 + 3 + 9
    run(Synthesize(model="reference", candidates=2, image_size=10), batch_of(), at=at)
    assert answers.asked == 24, "another image is another question"


def test_a_row_without_an_image_is_null_and_says_why():
    batch = batch_of()
    images = [None, b"<html>", IMAGES[0][:60], IMAGES[2]]
    rows = run(Synthesize(model="reference"), rows_of(image=pa.array(images, pa.binary())))
    reasons = ["no_image", "undecodable", "undecodable", None]
    assert [row["reason"] for row in rows] == reasons
    assert [row["captions"] is None for row in rows] == [True, True, True, False]
    blind = batch.set_column(3, "image_embedding", from_matrix(np.full((3, 64), np.nan, "f4")))
    stage = Synthesize(model="reference", candidates=2, keep="best", best_by="reference")
    answers = Counted()
    rows = run(stage, blind, at=worker(answers=answers))
    assert [row["reason"] for row in rows] == ["no_image_embedding"] * 3
    assert answers.asked == 0, "what cannot be judged is not paid for"


def test_a_prompt_with_a_place_for_the_caption_needs_one():
    stage = Synthesize(model="reference", prompts=("short", "short_with_text"))
    rows = run(stage, batch_of(texts=("a cat", None, "")))
    assert [len(row["captions"]) for row in rows] == [2, 1, 1]
    assert [row["captions_missing"] for row in rows] == [0, 1, 1]
    alone = run(
        Synthesize(model="reference", prompts=("short_with_text",)), batch_of(texts=("a", None, ""))
    )
    assert [row["reason"] for row in alone] == [None, "no_text", "no_text"]


def test_it_reads_what_it_asks_with():
    assert Synthesize(model="reference").reads == (IMAGE,)
    assert Synthesize(model="reference", prompts=("short_with_text",)).reads == (IMAGE, TEXT)
    judged = Synthesize(model="reference", candidates=2, keep="best", best_by="reference")
    assert judged.reads == (IMAGE, IMAGE_EMBEDDING)


def test_more_cores_make_images_ready_and_change_nothing_that_is_stored():
    many = Synthesize(model="reference", cpus=4)
    assert many.resources.cpus == 4
    assert settings_of(many) == settings_of(Synthesize(model="reference"))


def test_settings_that_do_not_fit_each_other_are_refused():
    with pytest.raises(RecipeError, match="without a model that scores"):
        Synthesize(model="reference", candidates=2, keep="best")
    with pytest.raises(RecipeError, match="two prompts are the same"):
        Synthesize(model="reference", prompts=("short", "short"))
    judged = Synthesize(model="reference", candidates=2, keep="best", best_by="reference")
    judged.check({"image_embedding": pa.list_(pa.float32(), 64)})
    with pytest.raises(RecipeError, match="image_embedding has 512 numbers, reference makes 64"):
        judged.check({"image_embedding": pa.list_(pa.float32(), 512)})
