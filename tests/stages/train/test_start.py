"""`start`, `lock` and `context_length`: what a training begins with, keeps, and refuses."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.planning.recipe import recipe_in
from clipmill.pipeline.planning.settings import typed_settings
from clipmill.stages.clip.loop import Schedule, Trainer
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.patches import Patches
from clipmill.stages.clip.start import Start, check_start, load_start, start_of, stretched
from clipmill.stages.clip.training import Work
from clipmill.stages.models.checkpoint import load
from clipmill.stages.train.clip import ClipTraining
from tests.stages.clip.exported import SMALL, TINY_OPEN_CLIP, weights, write_model
from tests.stages.clip.tiny_vit import drawn

ONE_STEP = {"samples_seen": 8, "warmup_steps": 0}
ATTENTIVE = {"loss": "a_clip", "image_views": 2, "average": 0.5, "patch_dropout": 0.5}
ATTENTIVE |= {"model": TINY_OPEN_CLIP}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def first(tmp_path) -> Path:
    return write_model(tmp_path / "first", "tiny", 5)


@pytest.fixture(scope="module")
def file(tmp_path_factory, open_clip) -> Path:
    """Weights of the tiny network, as open_clip's trainer stores them."""
    path = tmp_path_factory.mktemp("weights") / "epoch_1.pt"
    network = new_model(TINY_OPEN_CLIP, 5).network
    named = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": named}, path)
    return path


def test_without_samples_the_bytes_are_those_of_the_start(trained, first):
    for where in ({"start": f"checkpoint:{first}"}, {"start": "stage:x", "start_at": first}):
        folder = trained(samples_seen=0, **where)
        assert weights(folder) == weights(first)
    card = json.loads((folder / "out" / "model.json").read_text())
    assert card["start"] == card["sha256"]


def test_a_start_gives_other_weights_and_is_trained_once_wherever_it_lies(trained, first, tmp_path):
    begun = trained(start=f"checkpoint:{first}")
    assert weights(begun) not in (weights(trained()), weights(first))
    copied = shutil.copytree(first / "out", tmp_path / "copy")
    assert weights(trained(start=f"checkpoint:{copied}")) == weights(begun)
    keys = set()
    for folder in (first, copied):
        stage = ClipTraining(**SMALL, start=f"checkpoint:{folder}")
        facts = {"reader": "", "reading": None, "prepared": [], "facts": {}}
        keys.add(Work(settings=stage, start=start_of(stage.start), **facts).key(0, "cpu"))
    assert len(keys) == 1


def test_a_start_whose_bytes_change_is_another_and_one_that_is_copied_is_not(first, tmp_path):
    def outside(folder):
        return ClipTraining(start=f"checkpoint:{folder}").outside()

    before = outside(first)
    assert outside(shutil.copytree(first / "out", tmp_path / "copy")) == before
    assert outside(write_model(tmp_path / "other", "tiny", 6)) != before
    assert ClipTraining(start="stage:first").outside() == ""


def test_a_run_that_stopped_goes_on_from_its_checkpoint_not_from_the_start(trained, resumed, first):
    settings = {"start": f"checkpoint:{first}", "lock": "image"}
    assert weights(resumed(**settings)[0]) == weights(trained(**settings))


def test_a_file_of_open_clips_is_a_start_and_its_tokens_and_patches_are_stretched(
    trained, file, tmp_path, open_clip
):
    start, at = f"open_clip:{TINY_OPEN_CLIP}@{file}", {"model": TINY_OPEN_CLIP, "samples_seen": 0}
    own = new_model(TINY_OPEN_CLIP, 5).network.state_dict()
    config = json.loads(Path(TINY_OPEN_CLIP).read_text())
    config["vision_cfg"]["image_size"] = 64
    (tmp_path / "wide.json").write_text(json.dumps(config))
    for changes, positions, patches in (
        ({}, 77, 5),
        ({"context_length": 248}, 248, 5),
        ({"context_length": 30, "model": str(tmp_path / "wide.json")}, 30, 17),
    ):
        ours = stored(trained(**{"start": start, **at, **changes}))
        at_text, at_image = "positional_embedding", "visual.positional_embedding"
        assert (len(ours[at_text]), len(ours[at_image])) == (positions, patches)
        shared = min(positions, 20)
        assert torch.equal(ours[at_text][:shared], own[at_text][:shared])
        assert torch.equal(ours[at_image][0], own[at_image][0])
        same = own.keys() - {at_text, at_image}
        assert all(torch.equal(ours[name], own[name]) for name in same)


def test_77_positions_become_248_as_long_clip_stretches_them():
    old_L1 = torch.cat([torch.arange(76.0) ** 2, torch.tensor([5777.0])])[:, None]
    new_P = stretched(old_L1, 248)[:, 0]
    assert new_P[:21].tolist() == [n**2 for n in range(21)]
    assert new_P[20:25].tolist() == [400, 410.25, 420.5, 430.75, 441]
    last, step = 5777.0, 5777.0 - 75**2
    assert new_P[-4:].tolist() == [last + step * share for share in (0, 0.25, 0.5, 0.75)]
    assert torch.equal(stretched(old_L1, 77), old_L1)
    assert torch.equal(stretched(old_L1, 30), old_L1[:30])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_locked_tower_stays_bit_for_bit_and_the_other_one_learns(trained, first, tower):
    folder = trained(start=f"checkpoint:{first}", lock=tower, weight_decay=1.0)
    learnt = {name.partition(".")[0] for name in changed(stored(first), stored(folder))}
    assert learnt == {"image", "text", "log_scale"} - {tower}


def test_groups_of_a_locked_tower_learn_as_open_clip_counts_them(trained, file, open_clip):
    start = {"start": f"open_clip:{TINY_OPEN_CLIP}@{file}", "model": TINY_OPEN_CLIP, **ONE_STEP}
    before = new_model(TINY_OPEN_CLIP, 5).network.state_dict()
    image = {name for name in before if name.startswith("visual.")}
    learnt = changed(before, stored(trained(**start, lock="image", unlock_groups=2)))
    last = ("visual.proj", "visual.ln_post.", "visual.transformer.resblocks.1.")
    assert learnt & image == {name for name in image if name.startswith(last)}
    learnt = changed(before, stored(trained(**start, lock="text", accumulate=2)))
    assert learnt - image == {"logit_scale"}


def test_patches_are_dropped_by_hash_whatever_the_pieces_until_the_last_steps(trained, open_clip):
    settings = {"model": TINY_OPEN_CLIP, "patch_dropout": 0.5, "precision": "float32"}

    def losses(**more):
        out = trained(**settings, samples_seen=48, **more) / "out"
        return pq.read_table(out / "loss.parquet")["loss"].to_numpy()

    plain, whole = losses(), losses(patch_dropout_until=0.01)
    np.testing.assert_allclose(losses(accumulate=3), plain, rtol=1e-4)
    assert abs(plain - whole).min() > 1e-6
    last = losses(patch_dropout_until=0.5)
    assert last[:3].tolist() == plain[:3].tolist()
    assert abs(last[3:] - plain[3:]).min() > 1e-6


def test_a_rows_patches_are_its_own_on_any_rank():
    whole, part = (Patches(patches=49, share=0.5, steps=9, seed=1) for _ in range(2))
    whole.begin(4, np.arange(8), "cpu")
    part.begin(4, np.arange(5, 8), "cpu")
    x_NPW = torch.arange(50.0).expand(8, 50)[:, :, None]
    assert torch.equal(whole(x_NPW)[5:], part(x_NPW[5:]))
    kept_NP = whole(x_NPW)[:, :, 0]
    assert kept_NP.shape == (8, 25)
    assert (kept_NP[:, 0] == 0).all()
    assert len({tuple(sorted(row)) for row in kept_NP.tolist()}) == 8
    assert torch.equal(whole.eval()(x_NPW), x_NPW)


def test_an_average_of_weights_is_a_second_model_and_a_stop_changes_no_bit_of_it(trained, resumed):
    folder = trained(average=0.5, samples_seen=8, warmup_steps=0)
    assert weights(folder, "out/average") == weights(folder), "of one step it is the weights"
    whole = trained(average=0.5)
    assert weights(whole) == weights(trained()) != weights(whole, "out/average")
    assert load(str(whole / "out/average")).embed_texts(["a red thing"]).shape == (1, 8)
    stopped, _ = resumed(average=0.5)
    assert weights(stopped, "out/average") == weights(whole, "out/average")


def test_patches_by_attention_are_those_of_a_training_that_never_stopped(trained, resumed):
    whole, (stopped, _) = trained(**ATTENTIVE), resumed(**ATTENTIVE)
    assert weights(stopped) == weights(whole)
    assert weights(stopped, "out/average") == weights(whole, "out/average")


def test_an_average_forgets_by_its_decay():
    plan = {"steps": 9, "learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.1}
    model = new_model("tiny", 0)
    trainer = Trainer(model, Schedule(**plan, precision="float32"), average=0.75)
    expected = None
    for n in range(3):
        trainer.learn(drawn(n))
        weight = model.image.head.weight.detach().clone()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(trainer.average.module.image.head.weight.detach(), expected)


class Runs:
    """A pickle that writes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(trained, tmp_path, open_clip):
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    torch.save({"state_dict": Runs(tmp_path / "ran")}, tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        start = f"open_clip:{TINY_OPEN_CLIP}@{tmp_path / name}"
        with pytest.raises(StageError, match="no file of weights"):
            trained(model=TINY_OPEN_CLIP, start=start, samples_seen=0)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_refused_by_the_first_name_that_differs(
    trained, first, file, tmp_path
):
    with pytest.raises(StageError, match="another architecture: Missing key positional_embedding"):
        trained(start=f"checkpoint:{first}", model=TINY_OPEN_CLIP)
    weights = torch.load(file, weights_only=True)["state_dict"]
    weights |= {"module.visual.proj": torch.zeros(32, 8)}
    torch.save(weights, tmp_path / "narrow.pt")
    with pytest.raises(StageError, match=r"size mismatch for visual.proj: \(32, 8\)"):
        trained(start=f"open_clip:{TINY_OPEN_CLIP}@{tmp_path}/narrow.pt", model=TINY_OPEN_CLIP)


def test_two_networks_with_the_same_activation_fit():
    check_start("open_clip:ViT-B-32-quickgelu@f", "ViT-B-32-quickgelu")
    check_start("open_clip:ViT-B-32@f", "ViT-B-16")


def test_weights_that_change_after_the_stage_began_are_refused(first):
    start = Start(str(first), "0" * 64, is_file=False)
    with pytest.raises(StageError, match="which was 000000000000 when it began"):
        load_start(new_model("tiny", 0), start)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"start": "hub:x"}, "start is 'hub:x'"),
        ({"start": "checkpoint:"}, "start is 'checkpoint:'"),
        ({"start": "open_clip:ViT-B-32/openai"}, "open_clip:NAME@FILE"),
        ({"start": "open_clip:ViT-B-32-quickgelu@f", "model": "ViT-B-32"}, "quick_gelu"),
        ({"unlock_groups": 1}, "no tower is locked"),
        ({"super_batch": 3}, "sampling is epochs"),
        ({"reference_loss": "x", "sampling": "concepts"}, "sampling is concepts"),
        ({"concept_gain": "frequency", "sampling": "jest"}, "sampling is jest"),
        ({"loss": "tempnet", "image_views": 2}, "takes one view"),
        ({"loss": "tempnet", "text_views": 2}, "takes one view"),
        ({"sampling": "jest", "loss": "siglip"}, "jest has no reference"),
        ({"sampling": "jest", "reference_loss": "x"}, "sigmoid loss of pairs(.|\n)*siglip"),
        ({"concept_gain": "frequency", "sampling": "epochs"}, "sampling is epochs"),
        ({"context_length": 100}, "nano reads bags of words"),
        ({"layer_decay": 0.5}, "nano has no groups of layers"),
        ({"lock": "text", "unlock_groups": 2}, "nano has no groups of layers"),
        ({"patch_dropout": 0.5}, "nano's image tower has no patches"),
        ({"patch_dropout": 0.5, "model": "RN50"}, "an image tower without patches"),
        ({"patch_dropout": 0.5, "model": "vit_medium_patch16_gap_256"}, "without patches"),
        ({"loss": "a_clip"}, "the loss 'a_clip' compares two views"),
        ({**ATTENTIVE, "average": None}, "the loss 'a_clip' needs average"),
        ({**ATTENTIVE, "patch_dropout": None}, "'a_clip' needs patch_dropout"),
        ({**ATTENTIVE, "model": None}, "nano's image tower has no patches"),
        ({"samples_seen": 0}, "samples_seen is 0, and a batch has 256"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_plan(settings, found):
    with pytest.raises(RecipeError, match=found):
        ClipTraining(**settings)


@pytest.mark.parametrize("model", ["nano", "ViT-B-32", "RN50"])
def test_a_tower_that_no_network_has_is_refused_at_plan(model):
    shards = "shards: {uses: export.parquet, from: pool}"
    stage = f"clip: {{uses: train.clip, data: shards, model: {model}, lock: video}}"
    text = f"seed: 0\nstages:\n  {shards}\n  {stage}\n"
    recipe = recipe_in(text.encode(), Path("r.yaml"))
    with pytest.raises(RecipeError, match=r"lock is 'video'(.|\n)*one of: image, none, text"):
        typed_settings(recipe, "clip")


def test_what_is_not_there_is_refused_before_anything_runs(tmp_path):
    for start in (f"checkpoint:{tmp_path}/none", f"open_clip:ViT-B-32@{tmp_path}/none.pt"):
        with pytest.raises(StageError, match="none"):
            ClipTraining(start=start, scale="debug").look()


def test_a_layer_learns_by_the_groups_that_come_after_its_own(trained, file):
    settings = {"start": f"open_clip:{TINY_OPEN_CLIP}@{file}", "model": TINY_OPEN_CLIP}
    before = stored(trained(**settings, samples_seen=0))
    way = {**ONE_STEP, "layer_decay": 0.5, "weight_decay": 0.0, "precision": "float32"}
    after = stored(trained(**settings, **way, learning_rate=1e-4))
    for name, share in {
        "logit_scale": 1,
        "visual.proj": 1,
        "visual.ln_post.bias": 0.5,
        "visual.transformer.resblocks.1.mlp.c_fc.weight": 0.5,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 0.25,
        "visual.conv1.weight": 0.125,
        "transformer.resblocks.0.mlp.c_fc.weight": 0.25,
    }.items():
        moved = (after[name] - before[name]).abs().max().item()  # AdamW's first step: the rate
        assert moved == pytest.approx(share * 1e-4, rel=0.05), name
