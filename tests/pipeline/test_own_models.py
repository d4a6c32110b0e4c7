"""A model scheme in a user's own folder: the one that docs/adding/model.md adds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "adding" / "model.md").read_text(encoding="utf-8")
FILES = {block.file: block.text for block in blocks(PAGE)}
SCHEME, RECIPE = "stages/models/colour.py", "colours.yaml"
CAPTIONS = {"red": "a red square", "lime": "a green square", "blue": "a red square"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where the command runs: the page's scheme and recipe, and three pictures."""
    for name in (SCHEME, RECIPE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    for colour, caption in CAPTIONS.items():
        Image.new("RGB", (9, 9), colour).save(tmp_path / "pictures" / f"{colour}.png")
        (tmp_path / "pictures" / f"{colour}.txt").write_text(caption)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("clipmill_own.models.colour", None)


def test_a_file_in_ones_own_folder_is_a_model_that_plans_runs_and_scores(folder, clipmill):
    planned = clipmill("plan", RECIPE)
    assert planned.code == 0, planned.err
    ran = clipmill("run", RECIPE, "--out", "run", "--workers", 0)
    assert ran.code == 0, ran.err
    (scores,) = folder.glob("run/stages/score-*/000000*.parquet")
    blue, lime, red = pq.read_table(scores)["clip_score"].to_pylist()
    assert min(red, lime) > 0.99
    assert blue < 0.01
    assert "colour:rgb" in clipmill("doctor", "--model", "colour:rgb").out


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "colours:rgb",
            ("unknown scheme 'colours'", "did you mean 'colour'?", "stages/models/<scheme>.py"),
        ),
        ("features:rgb", ("unknown scheme 'features'",)),  # beside the schemes, and none itself
        ("colour:cmyk", ("model 'colour:cmyk': write colour:rgb",)),
    ],
    ids=["scheme", "no scheme", "name"],
)
def test_a_model_that_is_not_there_stops_the_plan(folder, clipmill, model, said):
    refused = clipmill("plan", RECIPE, "--set", f"emb.model={model}")
    assert refused.code == 2
    assert all(part in refused.err for part in said), refused.err
    assert "stage 'emb'" in refused.err


def test_a_scheme_that_cannot_be_imported_stops_the_plan_without_a_traceback(folder, clipmill):
    (folder / SCHEME).write_text("import nowhere\n\ndef width(name): ...\n\ndef load(name): ...\n")
    refused = clipmill("plan", RECIPE)
    assert refused.code == 2
    assert "'models.colour' needs the package 'nowhere'" in refused.err
    assert "Traceback" not in refused.err
