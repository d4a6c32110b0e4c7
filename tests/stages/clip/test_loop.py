"""Trainer and train: the plain loop, learning, a stop and a resume bit for bit, NaN."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.checkpoints import StoredCheckpoints
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.loop import Execution, Schedule, Trainer, learning_rate, train
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.saving import restore, store
from clipmill.stages.clip.whole_batch import whole
from clipmill.stages.losses.clip import loss as info_nce
from clipmill.stages.towers.nano import Nano
from tests.stages.clip.exported import TINY, TINY_OPEN_CLIP, batches_of, row
from tests.stages.clip.tiny_vit import CONTEXT, WORDS, drawn


def trainer(precision="bf16", steps=12, **changes) -> Trainer:
    schedule = {"learning_rate": 5e-3, "warmup_steps": 3, "weight_decay": 0.1, **changes}
    return Trainer(new_model("tiny", 0), Schedule(steps=steps, precision=precision, **schedule))


class StopError(Exception):
    """A process that ends here."""


def test_a_step_is_that_of_a_plain_loop_in_float32(batches):
    ours, made = trainer("float32"), batches()
    model = copy.deepcopy(ours.model)
    matrices = [w for w in model.parameters() if w.ndim > 1]
    others = [w for w in model.parameters() if w.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
    for n in range(5):
        batch = made[n]
        ours.learn(batch)
        model.train()
        image_BD = model.embed_images(torch.from_numpy(batch.pixels))
        text_BD = model.embed_texts(*map(torch.from_numpy, (batch.tokens, batch.starts)))
        loss = info_nce(whole(image_BD, text_BD, model.log_scale.exp())).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(n, peak=5e-3, warmup_steps=3, steps=12)
        optimiser.step()
        assert ours.losses[n] == pytest.approx(loss.item(), rel=1e-4)


def test_bf16_stays_near_float32(batches):
    made = batches()
    half, full = trainer("bf16"), trainer("float32")
    for n in range(12):
        half.learn(made[n])
        full.learn(made[n])
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.05)


def test_it_learns(batches):
    made = batches()
    learner = trainer(steps=90)
    train(learner, made, "it", 1000, lambda _: None)
    assert np.mean(learner.losses[-12:]) < 0.75 * np.mean(learner.losses[:12])


def test_a_row_counts_by_its_weight(batches):
    batch = batches()[0]
    learner = trainer()
    loss_B = trainer().learn(batch).numpy()
    batch.weights[:] = [0, 0, 3, 0, 0, 0, 1, 0]
    learner.learn(batch)
    assert learner.losses[0] == pytest.approx((3 * loss_B[2] + loss_B[6]) / 4, rel=1e-5)


def test_in_pieces_and_bf16_too_it_ends_at_the_same_bits(open_clip, tmp_path):
    config = json.loads(Path(TINY_OPEN_CLIP).read_text())
    config["text_cfg"] |= {"vocab_size": WORDS, "context_length": CONTEXT}
    (file := tmp_path / "tiny.json").write_text(json.dumps(config))

    def pieces() -> Trainer:
        schedule = trainer(steps=4).schedule
        return Trainer(new_model(str(file), 0), schedule, execution=Execution(accumulate=3))

    def batch(n):
        made = drawn(n)
        return replace(made, pixels=np.tile(made.pixels, (1, 1, 2, 2)))

    checkpoints = StoredCheckpoints(Storage(str(tmp_path)), "checkpoints", tmp_path)
    whole, first, second = pieces(), pieces(), pieces()
    for n in range(4):
        whole.learn(batch(n))
    for n in range(2):
        first.learn(batch(n))
    store(first, checkpoints, tmp_path)
    restore(second, checkpoints)
    for n in range(2, 4):
        second.learn(batch(n))
    state, expected = second.state(), whole.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_stopped_anywhere_and_resumed_it_ends_at_the_same_bits(batches, tmp_path, precision):
    made = batches()
    whole = trainer(precision)
    train(whole, made, "it", 1000, lambda _: None)
    checkpoints = StoredCheckpoints(Storage(str(tmp_path)), "checkpoints", tmp_path)

    def store_and_stop(learner):
        store(learner, checkpoints, tmp_path)
        raise StopError

    resumes = 0
    while True:
        learner = trainer(precision)  # as a new process would have it
        fresh = batches_of(made.shards, size=8, seed=0)
        restore(learner, checkpoints)
        try:
            train(learner, fresh, "it", 5, store_and_stop)
            break
        except StopError:
            resumes += 1
    assert resumes == 2
    state, expected = learner.state(), whole.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_steps_after_a_checkpoint_was_stored_are_done_again(batches, tmp_path):
    made = batches()
    checkpoints = StoredCheckpoints(Storage(str(tmp_path)), "checkpoints", tmp_path)
    keep = partial(store, checkpoints=checkpoints, scratch=tmp_path)
    train(first := trainer(steps=7), made, "it", 5, keep)
    restore(second := trainer(steps=7), checkpoints)
    assert second.step == 5
    train(second, made, "it", 5, keep)
    assert second.losses == first.losses


@pytest.mark.parametrize(("start", "end"), [(9.0, np.log(100)), (-1.0, 0.0)])
def test_the_scale_is_brought_back_between_1_and_100(batches, start, end):
    learner = trainer()
    learner.model.log_scale.data.fill_(start)
    learner.learn(batches()[0])
    assert learner.model.log_scale.item() == pytest.approx(end)
    learner.learn(batches()[1])
    assert learner.model.log_scale.grad  # from the end it may come back


def test_a_loss_that_is_nan_stops_with_step_and_shard(cached):
    parts, _ = cached([row(i) for i in range(20)], [row(20, loss_weight=float("nan")), row(21)])
    made = batches_of(parts, size=4, seed=0)
    step = next(n for n in range(9) if 20 in made[n].rows)
    learner = trainer()
    before = learner.state()
    with pytest.raises(StageError) as error:
        train(learner, made, "nano", 1000, lambda _: None)
    found, where, do = error.value.args
    assert found == "the loss of 1 of 4 rows is NaN or infinite"
    assert where == f"stage 'nano', step {step}, shard 00001.parquet"
    assert "loss_weight" in do
    assert learner.step == step
    assert all(torch.isfinite(value).all() for value in before.values())


def test_a_batch_that_weighs_nothing_blames_the_weights(cached):
    parts, _ = cached([row(i, loss_weight=0.0) for i in range(8)])
    with pytest.raises(StageError, match="give some rows of each batch a `loss_weight` above 0"):
        train(trainer(), batches_of(parts, size=4, seed=0), "nano", 1000, lambda _: None)


def test_a_model_that_diverges_blames_no_row(batches):
    learner = trainer(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(StageError, match="every row") as error:
        train(learner, batches(), "nano", 1000, lambda _: None)
    assert "00000.parquet, 00001.parquet" in error.value.args[1]
    assert "learning_rate" in error.value.args[2]


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    schedule = trainer().schedule
    with pytest.raises(StageError, match=r"no C\+\+ compiler"):
        Trainer(Nano(TINY), schedule, execution=Execution(compile=True))


@pytest.mark.soak(cpu_s=70)  # compiles C++
def test_compiled_it_has_the_same_losses(batches):
    made, schedule = batches(), trainer("float32").schedule
    plain = Trainer(Nano(TINY), schedule)
    compiled = Trainer(copy.deepcopy(plain.model), schedule, execution=Execution(compile=True))
    for n in range(3):
        for learner in (plain, compiled):
            learner.learn(made[n])
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=1e-4)


def test_a_fused_optimiser_steps_as_the_plain_ones(batches):
    made = batches()
    learners = [trainer("float32") for _ in range(3)]
    ways = ({"fused": True}, {"fused": False, "foreach": True}, {"fused": False, "foreach": False})
    for learner, way in zip(learners, ways, strict=True):
        for group in learner.optimiser.param_groups:
            group.update(way)
        for n in range(6):
            learner.learn(made[n])
    for other in learners[1:]:
        np.testing.assert_allclose(other.losses, learners[0].losses, rtol=1e-5)
