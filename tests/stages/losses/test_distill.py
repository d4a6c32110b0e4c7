"""Distillation from stored vectors: identities, known answers, the mean after softmax."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from clipmill.pipeline.errors import RecipeError
from clipmill.stages.clip.losses import declared_by
from clipmill.stages.losses import clip, distill
from tests.stages.losses.batches import drawn, gradients, of_pairs

ONE = {"images": ("image_a",), "texts": ("text_a",)}


def test_without_teachers_it_is_clip():
    batch = drawn(7)
    ours = distill.loss(batch, **ONE, w_clip=1.0, w_distill=0.0)
    assert torch.equal(ours, clip.loss(batch))


@pytest.mark.parametrize("tile", [None, 1])
def test_a_student_that_is_its_teacher_has_the_targets_entropy_and_no_gradient(tile):
    image_ND, text_ND = torch.eye(2, dtype=torch.float64).expand(2, 2, 2).unbind()
    image_ND, text_ND = image_ND.clone().requires_grad_(), text_ND.clone().requires_grad_()
    teacher = {"image_embedding": 3 * image_ND.detach(), "text_embedding": text_ND.detach()}
    batch = of_pairs(image_ND, text_ND, 1.0, teacher=teacher, tile=tile)
    loss_N = distill.loss(batch, scales=(1.0,))
    assert loss_N.tolist() == pytest.approx([0.5822031] * 2, rel=1e-6)
    for gradient in torch.autograd.grad(loss_N.sum(), (image_ND, text_ND)):
        assert gradient.abs().max() < 1e-15


def test_the_target_is_the_mean_of_the_teachers_softmaxes():
    batch = drawn(6)
    loss_N = distill.loss(
        batch, images=("image_a", "image_b"), texts=("text_a", "text_b"), scales=(7.0, 6.0)
    )
    (a, b), (ta, tb) = ([batch.teacher[f"{side}_{n}"] for n in "ab"] for side in ("image", "text"))
    logit_NN = 14 * batch.image_ND @ batch.text_HD.T
    target_NN = ((7 * a @ ta.T).softmax(1) + (6 * b @ tb.T).softmax(1)) / 2
    of_text_NN = ((7 * ta @ a.T).softmax(1) + (6 * tb @ b.T).softmax(1)) / 2
    costs = (target_NN * log_softmax(logit_NN, 1), of_text_NN * log_softmax(logit_NN.T, 1))
    torch.testing.assert_close(loss_N, -sum(cost.sum(1) for cost in costs) / 2)


@pytest.mark.parametrize("tile", [None, 1])
@pytest.mark.parametrize(("scale", "nats"), [(0.0, 2.772589), (2.0, 2.328812)])
def test_a_temperature_of_2_divides_logits_and_counts_4(scale, nats, tile):
    """The teacher's logits are (2, 0), the student's (0, 0) or the same."""
    eye_ND = torch.eye(2, dtype=torch.float64)
    teacher = {"image_embedding": eye_ND, "text_embedding": eye_ND}
    batch = of_pairs(eye_ND, eye_ND, scale, teacher=teacher, tile=tile)
    loss_N = distill.loss(batch, scales=(2.0,), temperature=2.0)
    assert loss_N.tolist() == pytest.approx([nats] * 2, abs=1e-6)


def test_both_parts_have_their_weight():
    batch = drawn(6)
    mixed = distill.loss(batch, **ONE, w_clip=0.25, w_distill=0.75)
    expected = 0.25 * clip.loss(batch) + 0.75 * distill.loss(batch, **ONE)
    torch.testing.assert_close(mixed, expected)


def test_teachers_need_not_be_unit_nor_of_the_students_type():
    batch = drawn(6)
    long = {name: (4 * rows).float() for name, rows in batch.teacher.items()}
    other = replace(batch, teacher=long, teacher_all=long)
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(distill.loss(other, **ONE), distill.loss(batch, **ONE), **near)
    assert gradients(distill.loss(other, **ONE), batch)[0].dtype == torch.float64


def test_columns_of_the_export_are_what_its_settings_name():
    assert declared_by("distill", {}).teacher == ("image_embedding", "text_embedding")
    two = {"images": ["a.image_embedding", "b.image_embedding"], "texts": ["t", "u"]}
    assert declared_by("distill", two).teacher == (*two["images"], *two["texts"])
    assert declared_by("distill", {"images": ["v", "w"], "texts": ["v"] * 2}).teacher == ("v", "w")
    assert declared_by("distill", {}).texts == "first"


def test_teachers_that_lack_a_side_are_refused():
    with pytest.raises(RecipeError, match="2 images, 1 texts and 1 scales"):
        distill.loss(drawn(3), images=("image_a", "image_b"), texts=("text_a",))
    with pytest.raises(RecipeError, match="0 images, 0 texts and 0 scales"):
        distill.loss(drawn(3), images=(), texts=(), scales=())
