"""Schemes: the known ones open, others are refused by name, planning imports no framework."""

import subprocess
import sys

import pytest

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.models.image_text import load, width_of


def test_the_width_known_at_plan_time_is_the_models():
    model = load("reference")
    assert model.width == width_of("reference")
    assert model.embed_texts(["a"]).shape == (1, model.width)


@pytest.mark.parametrize("call", [width_of, load])
def test_an_unknown_scheme_is_refused_with_the_known_ones(call):
    with pytest.raises(RecipeError, match=r"(?s)'opne_clip:ViT.*did you mean 'open_clip'"):
        call("opne_clip:ViT-B-32/openai")


def test_the_reference_has_no_variants():
    with pytest.raises(RecipeError, match=r"(?s)no variants.*'reference:large'"):
        width_of("reference:large")


@pytest.mark.parametrize("model", ["stage:clip", "checkpoint:s3://bucket/run/clip"])
def test_a_plan_opens_no_weights_of_ours(model):
    assert width_of(model) is None


def test_our_schemes_need_a_name():
    for model in ("stage:", "checkpoint:"):
        with pytest.raises(RecipeError, match="checkpoint:<URI> or stage:<name>"):
            width_of(model)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"no model\.json"):
        load(f"checkpoint:{tmp_path}")


def test_asking_for_a_width_imports_no_framework():
    code = """
import sys
from clipmill.stages.models.image_text import width_of
for model in ("reference", "stage:x", "open_clip:ViT-B-32/openai"):
    width_of(model)
assert not {"torch", "cv2", "open_clip"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
