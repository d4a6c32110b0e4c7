"""The recipe datacomp-basic: DataComp's rule, row for row, given the language."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from clipmill import pipeline
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.annotate.caption import caption
from clipmill.stages.select.where import Where

RECIPE = Path(pipeline.__file__).parent / "recipes" / "datacomp-basic.yaml"
WHERE = yaml.safe_load(RECIPE.read_text())["stages"]["subset"]["where"]


@pytest.fixture
def kept(memory_shards, memory_context):
    """Whether the recipe keeps each (language, text, width, height)."""

    def run(rows: list[tuple]) -> list[bool]:
        language, text, width, height = zip(*rows, strict=True)
        words = caption(pa.table({"text": pa.array(text, pa.string())}))
        pool = {
            "uid": pa.array([n.to_bytes(16, "big") for n in range(len(rows))], pa.binary(16)),
            "language": pa.array(language, pa.string()),
            "caption_words": words["caption_words"],
            "caption_chars": words["caption_chars"],
            "original_width": pa.array(width, pa.int32()),
            "original_height": pa.array(height, pa.int32()),
        }
        ctx = memory_context()
        Where(where=WHERE).run(Inputs(rows=memory_shards(pa.table(pool))), ctx)
        return ctx.stored[0]["keep"].to_pylist()

    return run


def basic_filter(language: str | None, text: str, width: int, height: int) -> bool:
    """The rule in plain Python."""
    return (
        language == "en"
        and len(text.split()) > 2
        and len(text) > 5
        and min(width, height) >= 200
        and max(width, height) / min(width, height) <= 3.0
    )


@pytest.mark.parametrize(
    ("row", "stays"),
    [
        (("en", "a red rose", 640, 480), True),
        (("de", "a red rose", 640, 480), False),
        ((None, "a red rose", 640, 480), False),
        (("en", "a b cd", 640, 480), True),  # 3 words, 6 characters
        (("en", "a b c", 640, 480), False),  # 5 characters
        (("en", "red roses", 640, 480), False),  # 2 words
        (("en", "a\u00a0red\u3000rose", 640, 480), True),  # Python's whitespace
        (("en", "a\u200bred\u200brose", 640, 480), False),  # zero width: none
        (("en", "a red\nrose", 640, 480), True),
        (("en", "🌹 🌹 🌹", 640, 480), False),  # 5 code points, 14 bytes
        (("en", "🌹 🌹 🌹🌹", 640, 480), True),
        (("en", None, 640, 480), False),
        (("en", "a red rose", 200, 200), True),
        (("en", "a red rose", 199, 200), False),
        (("en", "a red rose", 200, 199), False),
        (("en", "a red rose", 600, 200), True),  # exactly 3
        (("en", "a red rose", 200, 600), True),
        (("en", "a red rose", 601, 200), False),  # 3 by integer division
        (("en", "a red rose", 200, 601), False),
        (("en", "a red rose", 0, 0), False),
        (("en", "a red rose", None, 480), False),
        (("en", "a red rose", 640, None), False),
    ],
)
def test_every_boundary(kept, row, stays):
    assert kept([row]) == [stays]


def test_thousands_of_rows_near_the_boundaries_are_kept_as_plain_python_keeps_them(kept):
    rng = np.random.default_rng(0)
    pieces = ["a", "bc", "rose", " ", "  ", "\n", "\u00a0", "\u200b", "🌹", "é"]
    rows = [
        (
            ["en", "de", None][rng.choice(3, p=[0.8, 0.1, 0.1])],
            "".join(rng.choice(pieces, rng.integers(2, 10))),
            int(side := rng.integers(195, 260)),
            int(side * 3 + rng.integers(-2, 3)) if rng.random() < 0.5 else int(side),
        )
        for _ in range(4_000)
    ]
    expected = [basic_filter(*row) for row in rows]
    assert kept(rows) == expected
    assert 200 < sum(expected) < 3_800
