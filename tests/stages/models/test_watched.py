"""Watched models: a tenth of vectors without a direction, the probes, what is counted."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.models.watched import PROBES, Watched, WatchedModel, pictures, texts


def given(row_ND):
    return np.array(row_ND, np.float32)


def probes():
    return (np.ones((PROBES, 3)),)


def test_good_vectors_are_the_models_and_ask_for_no_probe():
    watched = Watched(given, lambda: pytest.fail("asked"), "it")
    row_ND = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(watched(row_ND), row_ND)
    assert watched(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("bad", [[0, 0, 0], [1, np.nan, 1], [1, 1, np.inf], [-np.inf, 0, 0]])
def test_up_to_a_tenth_come_out_as_nan_and_more_refuse_the_model(bad):
    watched = Watched(given, probes, "checkpoint:some/model")
    for count in range(1, 8):  # of 64 probes and so many rows
        assert np.isnan(watched([bad])).all(), count
    with pytest.raises(StageError, match="8 of 72 vectors") as error:
        watched([bad])
    assert error.value.args[1] == "model 'checkpoint:some/model'"


def test_rows_before_and_after_count_whatever_the_batches():
    watched = Watched(given, probes, "it")
    row_ND = np.ones((200, 3))
    row_ND[::20] = 0
    out_ND = np.concatenate([watched(row_ND[at : at + 7]) for at in range(0, 200, 7)])
    np.testing.assert_array_equal(np.isnan(out_ND).all(axis=1), ~row_ND.any(axis=1))


def test_probes_are_different_pictures_and_texts():
    (images,), (captions,) = pictures(), texts()
    assert len({image.tobytes() for image in images}) == len({*captions}) == PROBES
    assert {(image.shape, image.dtype) for image in images} == {((32, 32, 3), np.dtype(np.uint8))}


def test_a_model_that_is_used_no_more_is_gone_without_a_search_for_garbage():
    model = WatchedModel(SimpleNamespace(width=3, sha256=None), "it")
    gone = weakref.ref(model)
    del model
    assert gone() is None
