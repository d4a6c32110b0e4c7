"""DataComp's caption filter and two of its recipes, row for row, given language and score."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from clipmill import pipeline
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.annotate.caption import caption
from clipmill.stages.select.where import Top, Where

RECIPES = Path(pipeline.__file__).parent / "recipes"
# Before its image-based filter; not the words of its basic filter, but fastText's tokens.
CAPTION_FILTER = "language = 'en' AND caption_tokens > 1 AND caption_chars > 5"


def recipe_select(name: str) -> Where:
    """The recipe's own select.where."""
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["stages"]["subset"]
    top = settings.get("top")
    return Where(where=settings.get("where"), top=Top(**top) if top else None)


@pytest.fixture
def keeps(memory_shards, memory_context):
    """The `keep` of every row of these columns."""

    def run(where: Where, **columns: pa.Array) -> list[bool]:
        rows = len(next(iter(columns.values())))
        uid = pa.array([n.to_bytes(16, "big") for n in range(rows)], pa.binary(16))
        ctx = memory_context()
        where.run(Inputs(rows=memory_shards(pa.table({"uid": uid, **columns}))), ctx)
        return ctx.stored[0]["keep"].to_pylist()

    return run


def fasttext_tokens(text: str) -> int:
    """len(fasttext.tokenize(text)): pieces between seven separators, and one a newline."""
    for separator in " \r\t\v\f\0":
        text = text.replace(separator, " ")
    return sum(1 for line in text.split("\n") for piece in line.split(" ") if piece) + text.count(
        "\n"
    )


@pytest.mark.parametrize(
    ("language", "text", "stays"),
    [
        ("en", "red roses", True),  # two words are enough here, and an image of any size
        ("en", "rosebush", False),
        ("en", "rosebush\n", True),  # the newline is a token
        ("en", "rose\u00a0bush", False),  # fastText cuts at ASCII whitespace alone
        ("en", "a\0rose", True),
        ("en", "a ros", False),  # 5 characters
        ("de", "rote Rosen", False),
        (None, "red roses", False),
        ("en", None, False),
    ],
)
def test_the_caption_filter_at_its_boundaries(keeps, language, text, stays):
    counted = caption(pa.table({"text": pa.array([text], pa.string())}))
    columns = {name: counted[name] for name in ("caption_tokens", "caption_chars")}
    languages = pa.array([language], pa.string())
    assert keeps(Where(where=CAPTION_FILTER), language=languages, **columns) == [stays]


def test_the_caption_filter_is_that_of_plain_python_on_thousands_of_rows(keeps):
    rng = np.random.default_rng(0)
    pieces = ["a", "bc", "rose", " ", "\n", "\t", "\0", "\u00a0", "\u3000", "🌹"]
    texts = ["".join(rng.choice(pieces, rng.integers(1, 8))) for _ in range(4_000)]
    languages = [["en", "de", None][rng.choice(3, p=[0.8, 0.1, 0.1])] for _ in texts]
    counted = caption(pa.table({"text": pa.array(texts, pa.string())}))
    expected = [
        language == "en" and fasttext_tokens(text) > 1 and len(text) > 5
        for language, text in zip(languages, texts, strict=True)
    ]
    kept = keeps(
        Where(where=CAPTION_FILTER),
        language=pa.array(languages, pa.string()),
        caption_tokens=counted["caption_tokens"],
        caption_chars=counted["caption_chars"],
    )
    assert kept == expected
    assert 200 < sum(expected) < 3_800


def near(cut: float, rng: np.random.Generator, rows: int) -> np.ndarray:
    """float32 scores, half of them within three representable steps of the cut; some are NaN."""
    scores = rng.uniform(0, 0.5, rows).astype(np.float32)
    close = np.float32(cut) + rng.integers(-3, 4, rows) * np.spacing(np.float32(cut))
    scores = np.where(rng.random(rows) < 0.5, close.astype(np.float32), scores)
    return np.where(rng.random(rows) < 0.01, np.float32(np.nan), scores)


def test_laion_2b_keeps_english_from_float32_of_0_28(keeps):
    rng = np.random.default_rng(1)
    scores = near(0.28, rng, 20_000)
    languages = [["en", "de", None][rng.choice(3, p=[0.7, 0.2, 0.1])] for _ in scores]
    expected = [
        language == "en" and bool(score >= np.float32(0.28))
        for language, score in zip(languages, scores, strict=True)
    ]
    kept = keeps(
        recipe_select("laion-2b"),
        language=pa.array(languages, pa.string()),
        clip_b32_similarity_score=pa.array(scores),
    )
    assert kept == expected
    assert (scores == np.float32(0.28)).sum() > 500
    assert np.isnan(scores).sum() > 100
    assert 3000 < sum(expected) < 17_000


@pytest.mark.parametrize("rows", [10, 999, 20_000])
def test_clip_score_keeps_from_the_n_plus_first_score_with_all_its_ties(keeps, rows):
    scores = np.random.default_rng(rows).integers(0, max(rows // 20, 5), rows).astype(np.float32)
    cut = np.sort(scores)[::-1][int(rows * 0.3)]  # the (n+1)-th largest
    kept = keeps(recipe_select("datacomp-clip-score"), clip_l14_similarity_score=pa.array(scores))
    assert kept == (scores >= cut).tolist()
    assert sum(kept) >= int(rows * 0.3) + 1
