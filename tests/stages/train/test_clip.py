"""train.clip: what it stores, what decides it, what it refuses, and a kill that changes nothing."""

import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest, settings_of
from clipmill.metadata.schema import TEXTS, UID
from clipmill.metadata.subset_file import write_subset
from clipmill.pipeline import own_code
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.clip.loop import learning_rate
from clipmill.stages.clip.scales import SCALES
from clipmill.stages.clip.training import Work
from clipmill.stages.models.checkpoint import load
from clipmill.stages.models.image_text import load as load_by_name
from clipmill.stages.models.saved import cards
from clipmill.stages.train.clip import ClipTraining
from tests.engine_stages.harness import clipmill_run
from tests.stages.clip.exported import SMALL, TINY_OPEN_CLIP, row, weights, write_export


def test_it_leaves_a_model_that_loads_its_card_and_its_curve(trained):
    folder = trained()
    held = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    files = ("README.md", "loss.parquet", "model.json", "model.safetensors")
    assert held == ["log/log.jsonl", *(f"out/{file}" for file in files)]
    assert load(str(folder)).embed_texts(["a red thing"]).shape == (1, 8)
    card = json.loads((folder / "out" / "model.json").read_text())
    assert (card["rows"], card["plan"]["steps"], card["scale"]) == (11, 12, "nano")
    curve = pq.read_table(folder / "out" / "loss.parquet").to_pydict()
    assert curve["step"] == list(range(12))
    assert curve["samples_seen"][-1] == 88
    rates = [learning_rate(n, peak=2e-3, warmup_steps=2, steps=12) for n in range(12)]
    assert curve["learning_rate"] == rates


def test_the_same_rows_and_seed_give_the_same_bits(trained):
    first, second = trained(), trained(checkpoint_steps=1)
    for name in ("model.safetensors", "loss.parquet", "model.json"):
        assert (first / "out" / name).read_bytes() == (second / "out" / name).read_bytes()


@pytest.mark.parametrize("other", [{"seeds": (1,)}, {"learning_rate": 1e-3}, {"weight_decay": 0.0}])
def test_seed_and_settings_give_other_weights(trained, other):
    ours = ClipTraining(**{**SMALL, **other})
    assert weights(trained()) != weights(trained(**vars(ours)))


def test_the_setting_seed_is_added_to_the_recipes(launching_context, data, trained):
    ctx = launching_context(seed=2)
    ClipTraining(**SMALL, seeds=(1,)).run(Inputs(rows=[], data=data), ctx)
    other = launching_context(seed=3)
    ClipTraining(**SMALL).run(Inputs(rows=[], data=data), other)
    assert weights(Path(ctx.folder)) == weights(Path(other.folder))


@pytest.mark.slow("trains with each seed, and with both")
def test_each_of_several_seeds_leaves_what_it_leaves_alone(trained, launching_context, data):
    folder = trained(seeds=(3, 0))
    held = sorted(path.name for path in (folder / "out").iterdir())
    files = ("README.md", "loss.parquet", "model.json", "model.safetensors")
    assert held == [f"seed-{seed}.{file}" for seed in (0, 3) for file in files]
    for seed in (0, 3):
        alone = trained(seeds=(seed,)) / "out"
        for file in files:
            assert (folder / "out" / f"seed-{seed}.{file}").read_bytes() == (
                alone / file
            ).read_bytes()
    assert load(str(folder)).sha256 == load(str(trained())).sha256  # the first, where none is named
    assert load(str(folder), card="out/seed-3.model.json").sha256 != load(str(folder)).sha256


def test_a_run_that_stopped_goes_on_from_its_checkpoint(trained, resumed):
    folder, stored = resumed()
    assert stored == [5, 10]
    assert weights(folder) == weights(trained())


def test_snapshots_are_models_on_the_way_whatever_stops_it_and_change_nothing(trained, resumed):
    """12 steps, a checkpoint each 5: models after 3, 6 and 9 steps beside the whole."""
    whole, folder = trained(), trained(snapshots=4)
    names = ("README.md", "model.json", "model.safetensors")
    held = sorted(path.name for path in (folder / "out").iterdir())
    early = [f"at-{percent}.{name}" for percent in (25, 50, 75) for name in names]
    assert held == sorted([*early, *names, "loss.parquet"])
    for path in (whole / "out").iterdir():
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes()
    assert cards(str(folder)) == [f"out/{m}model.json" for m in ("", "at-25.", "at-50.", "at-75.")]
    seen = [
        json.loads((folder / card).read_text()).get("samples_seen") for card in cards(str(folder))
    ]
    assert seen == [None, 24, 48, 72]
    steps = [
        json.loads(line)["step"] for line in (folder / "log/log.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps))
    assert (
        len({load(str(folder), card=card).sha256 for card in cards(str(folder))}) == len(names) + 1
    )
    stopped, _ = resumed(stops=(1, 4), snapshots=4)
    for name in held:
        assert (stopped / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()


class Every:
    """A mask that keeps all rows but one."""

    def __init__(self, left_out: int) -> None:
        self.left_out = left_out

    def times(self, file: str) -> np.ndarray:
        first, rows = (0, 9) if file == "00000.parquet" else (9, 2)
        return (np.arange(first, first + rows) != self.left_out).astype(np.int32)


def test_a_checkpoint_of_other_verdicts_is_not_gone_on_from(trained, resumed):
    folder, _ = resumed(masks=(Every(0), Every(10)))
    assert weights(folder) == weights(trained(mask=Every(10)))


def listed(path: Path, *numbers: int) -> str:
    path.write_text("\n".join(row(i)["uid"].hex() for i in numbers))
    return str(path)


def test_a_list_of_uids_trains_as_an_export_of_the_same_rows_bit_for_bit(trained, tmp_path):
    numbers = [0, 2, 3, 5, 7, 8, 9, 10]
    path = listed(tmp_path / "list.txt", *numbers, 3, 999)
    rows = [row(i, repeats=2 if i == 3 else 1) for i in reversed(numbers)]
    export = write_export(tmp_path / "subset", rows[:3], rows[3:])
    folder = trained(subset=path)
    assert weights(folder) == weights(trained(data=export)) != weights(trained())
    card = json.loads((folder / "out" / "model.json").read_text())
    assert (card["rows"], card["listed"], card["not_there"]) == (8, 9, 1)
    assert card["left_out"]["not_kept"] == 3


def test_shards_drawn_with_replacement_are_decoded_as_they_are_learnt_from(trained, data):
    settings = {"sampling": "shards", "texts": "first"}
    folder = trained(**settings)
    assert weights(folder) == weights(trained(**settings, readers=2)) != weights(trained())
    held = sorted(path.name for path in folder.rglob("*.npy"))
    assert not held, "nothing is decoded beforehand"
    card = json.loads((folder / "out" / "model.json").read_text())
    assert card["rows"] == 11


def test_pictures_that_do_not_decode_in_training_are_told_and_a_stop_changes_no_count(
    trained, resumed, tmp_path
):
    rows = [row(i, **({"image": b"no"} if i in (1, 6) else {})) for i in range(12)]
    data = write_export(tmp_path / "bad", rows)
    settings = {"sampling": "shards", "samples_seen": 96}  # 12 steps; one shard: 8 epochs
    out = trained(data=data, **settings) / "out"
    card = json.loads((out / "model.json").read_text())
    assert card["replaced"] == {"no_image": 0, "undecodable": 16}
    assert (
        "| samples that another picture stood in for, as theirs does not decode | 16 |"
        in (out / "README.md").read_text()
    )

    folder, _ = resumed(data=data, **settings)
    assert (folder / "out" / "model.json").read_bytes() == (out / "model.json").read_bytes()
    lines = [json.loads(it) for it in (folder / "log" / "log.jsonl").read_text().splitlines()]
    counts = [line["replaced"] for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 16


def test_an_export_that_left_its_run_trains_the_same_and_is_held_to_its_digests(
    trained, data, tmp_path
):
    flat = shutil.copytree(f"{data}/out", tmp_path / "flat")
    assert weights(trained(data=str(flat))) == weights(trained())
    body = bytearray((flat / "00001.parquet").read_bytes())
    body[40] ^= 1
    (flat / "00001.parquet").write_bytes(body)
    with pytest.raises(DamagedError, match=r"flat/00001\.parquet"):
        trained(data=str(flat))


def test_a_shard_that_has_vanished_is_named_and_nothing_is_trained(trained, data, tmp_path):
    Path(data, "out", "00001.parquet").unlink()
    with pytest.raises((StageError, DamagedError), match=r"00001\.parquet"):
        trained()
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_subset_of_another_pool_is_refused_before_a_picture_is_read(trained, data, tmp_path):
    path = listed(tmp_path / "list.txt", 100, 101)
    with pytest.raises(StageError, match="no row of the data is in the subset, which names 2"):
        trained(subset=path)


def test_a_subset_of_which_the_data_hold_less_than_a_batch_is_refused(trained, tmp_path):
    path = listed(tmp_path / "list.txt", 1, 2, 3, 900)
    with pytest.raises(StageError, match="of 4 in the subset the data have 3 rows, and a batch"):
        trained(subset=path)


def test_a_subset_whose_bytes_change_is_another_and_one_that_is_copied_is_not(tmp_path):
    path = tmp_path / "list.txt"
    stage = ClipTraining(subset=listed(path, 1, 2))
    before = stage.outside()
    os.utime(path, (1, 1))
    assert stage.outside() == before
    listed(path, 1, 3)
    assert stage.outside() != before
    assert ClipTraining().outside() == ""


@pytest.mark.parametrize("loss", ["distill", "mod_x"])
def test_texts_in_the_place_of_those_whose_vectors_a_loss_reads_are_refused(tmp_path, loss):
    path = str(tmp_path / "other.parquet")
    write_subset(
        path, [pa.table({UID.name: pa.array([], UID.dtype), TEXTS.name: pa.array([], TEXTS.dtype)})]
    )
    ClipTraining(subset=path).look()
    with pytest.raises(RecipeError, match=f"replaces texts, of which '{loss}' reads the export's"):
        ClipTraining(subset=path, loss=loss).look()
    ClipTraining(subset=listed(tmp_path / "list.txt", 1), loss=loss).look()


def test_a_subset_smaller_than_a_batch_is_refused_before_anything_is_read(trained, data):
    os.remove(f"{data}/out/00001.parquet")
    with pytest.raises(StageError) as error:
        trained(batch_size=12, samples_seen=120)
    found, where, _ = error.value.args
    assert found == "the export has 11 rows, and a batch has 12"
    assert where == "stage 'it', key `batch_size`"


def test_so_is_one_that_is_smaller_once_its_bad_rows_are_out(trained, tmp_path):
    data = write_export(
        tmp_path / "bad", [row(i, image=b"no" if i < 4 else None) for i in range(9)]
    )
    with pytest.raises(StageError, match="there are 0 rows") as error:
        trained(data=data)
    assert error.value.args[0].startswith(
        "after leaving out 5 no_image and 4 undecodable there are"
    )


@pytest.mark.parametrize("sampling", ["epochs", "shards"])
def test_a_list_of_a_batch_of_rows_of_which_one_does_not_decode_is_refused(
    trained, tmp_path, sampling
):
    rows = [row(i, **({"image": b"no"} if i == 3 else {})) for i in range(12)]
    data, path = write_export(tmp_path / "bad", rows), listed(tmp_path / "list.txt", *range(8))
    with pytest.raises(StageError) as error:
        trained(data=data, subset=path, sampling=sampling)
    found, _, do = error.value.args
    assert found.endswith("and a batch has 8")
    assert found.startswith(
        {
            "epochs": "after leaving out 1 undecodable, of 8 in the subset the data have 7 rows",
            "shards": "pictures of 1 of 8 rows do not decode",
        }[sampling]
    )
    assert "select more rows, or lower `batch_size`" in do


def test_a_loss_that_is_nan_names_the_stage_step_and_shard(trained, tmp_path):
    bad = row(0, loss_weight=float("inf"))
    data = write_export(tmp_path / "bad", [row(i) for i in range(1, 8)], [bad])
    with pytest.raises(StageError, match=r"stage 'it', step 0, shard 00001\.parquet"):
        trained(data=data)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (7, "running_var' holds NaN or infinite values after step 7, the last"),
        (12, "the loss of every row is NaN or infinite"),
    ],
)
def test_a_nano_that_diverged_ends_in_a_sentence(trained, steps, found):
    """The loss tells it at the step after: where the last one did it, only the weights do."""
    with pytest.raises(StageError, match=found) as error:
        trained(learning_rate=1e3, warmup_steps=0, samples_seen=8 * steps)
    assert error.value.args[2] == "lower `learning_rate`, or raise `warmup_steps`"


def test_a_nano_that_diverged_to_finite_weights_is_refused_where_it_embeds(trained):
    folder = trained(learning_rate=1e3, warmup_steps=0, samples_seen=8)
    model = load_by_name(f"checkpoint:{folder}")
    with pytest.raises(StageError, match="of 65 vectors are zero or not finite") as error:
        model.embed_images([np.zeros((9, 9, 3), np.uint8)])
    assert str(folder) in error.value.args[1]
    assert "diverged" in error.value.args[2]


@pytest.mark.parametrize(
    ("dataset", "found"),
    [
        (None, "no Parquet export"),
        ({"format": "webdataset"}, "a webdataset"),
        ({"format": "parquet", "files": [{"file": "../a.parquet"}]}, "'../a.parquet'"),
    ],
)
def test_what_is_no_parquet_export_is_refused(trained, tmp_path, dataset, found):
    (tmp_path / "other" / "out").mkdir(parents=True)
    if dataset:
        (tmp_path / "other" / "out" / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(StageError, match=found):
        trained(data=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"samples_seen": 800, "batch_size": 256}, "warmup_steps is 20.*3 steps"),
        ({"scale": "debug", "warmup_steps": 200}, "warmup_steps is 200.*125 steps"),
        ({"scale": "small", "samples_seen": 409_600}, "warmup_steps is 500.*100 steps"),
        ({"samples_seen": 255, "warmup_steps": 0}, "samples_seen is 255, and a batch has 256"),
        ({"loss": "cilp"}, "no loss 'cilp'"),
        ({"loss": "intra_modal"}, "compares two views(.|\n)*image_views: 2 or text_views: 2"),
        ({"loss_settings": {"scale": 1}}, "no setting 'scale'"),
        ({"batch_size": 8, "ranks": 3, "accumulate": 3}, "for 3 ranks of 3 pieces"),
        ({"seeds": ()}, r"seeds is \[\]"),
        ({"seeds": (1, 1)}, r"seeds is \[1, 1\](.|\n)*none twice"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_plan(settings, found):
    with pytest.raises(RecipeError, match=found):
        ClipTraining(**settings)


def test_a_loss_or_a_network_whose_file_changes_is_another_and_ours_are_the_versions(tmp_path):
    (tmp_path / "losses").mkdir()
    found = []
    for text in ("def loss(batch): ...", "def loss(batch): return 0"):
        (tmp_path / "losses" / "own.py").write_text(text)
        (tmp_path / "own.json").write_text(f'["{text}"]')
        own_code.add(tmp_path)
        found.append(ClipTraining(loss="own", model=str(tmp_path / "own.json")).digests)
    assert found[0].keys() == found[1].keys() == {"loss_file", "model_file"}
    assert not set(found[0].values()) & set(found[1].values())
    assert ClipTraining(loss="siglip", scale="debug").digests == {}


def test_null_is_the_scales_value_and_a_run_knows_it_as_a_number():
    plain = settings_of(ClipTraining())
    assert plain == settings_of(ClipTraining(samples_seen=60_160, batch_size=256))
    assert (plain["warmup_steps"], plain["learning_rate"], plain["weight_decay"]) == (20, 2e-3, 0.1)
    assert ClipTraining(scale="debug").fixed == SCALES["debug"]  # 125 steps, all of them warm-up
    shorter = ClipTraining(scale="debug", samples_seen=51_200, learning_rate=1e-3)
    assert (shorter.steps, shorter.warmup_steps) == (50, 500)
    large = ClipTraining(scale="large", batch_size=512, model="ViT-B-32").fixed
    assert (large.model, large.batch_size, large.steps) == ("ViT-B-32", 512, 2_500_000)


def test_a_training_is_another_with_another_open_clip_or_device_and_nanos_stays(
    monkeypatch, open_clip
):
    from clipmill.stages.towers import open_clip as towers

    def key(device="cpu", **settings):
        stage = ClipTraining(**SMALL, **settings)
        work = Work(settings=stage, reader="", reading=None, prepared=[], facts={"rows": 8})
        return work.key(0, device)

    held = [2, torch.__version__]  # as stored trainings of this version have it
    assert key() == digest([{"rows": 8}, settings_of(ClipTraining(**SMALL)), held])
    assert key("cuda:0") == key("cuda:1") != key()
    small, first = {"model": TINY_OPEN_CLIP}, key(model=TINY_OPEN_CLIP)
    assert first == key("cpu", **small) != key("cuda:0", **small)
    monkeypatch.setattr(towers, "version", lambda package: "0.0")
    assert key(**small) != first


@pytest.mark.parametrize("loss", ["siglip", "multi_positive"])
def test_a_loss_is_found_by_name_and_its_tiles_change_no_value(trained, loss):
    folders = [trained(loss=loss, precision="float32", tile=tile) for tile in (None, 3)]
    one, tiled = (pq.read_table(folder / "out" / "loss.parquet")["loss"] for folder in folders)
    np.testing.assert_allclose(one, tiled, rtol=1e-4)
    assert json.loads((folders[0] / "out" / "model.json").read_text())["loss"] == loss


def test_a_network_of_open_clips_trains_in_pieces_and_with_fewer_activations_to_the_same_loss(
    trained, open_clip
):
    ways = ({}, {"accumulate": 3}, {"checkpoint_activations": True})
    steps = {"samples_seen": 24, "precision": "float32", "model": TINY_OPEN_CLIP}
    folders = [trained(**steps, **way) for way in ways]
    whole, *others = (pq.read_table(folder / "out" / "loss.parquet")["loss"] for folder in folders)
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=1e-4)


RECIPE = """
stages:
  pool: {{uses: ingest.image_folder, path: {path}}}
  shards: {{uses: export.parquet, from: pool}}
  clip: {{uses: train.clip, data: shards, batch_size: 8, samples_seen: 48, warmup_steps: 2,
         checkpoint_steps: 2, seeds: [0, 1]}}
  eval: {{uses: evaluate.zero_shot, model: "stage:clip", tasks: {tasks}}}
"""


RANKS = """
stages:
  pool: {{uses: ingest.image_folder, path: {path}}}
  shards: {{uses: export.parquet, from: pool}}
  clip: {{uses: train.clip, data: shards, batch_size: 8, samples_seen: 48, warmup_steps: 2,
         checkpoint_steps: 2, ranks: 2, seeds: {seeds}}}
"""
PIECES = """seeds: [0, 1], accumulate: 2, precision: bf16, texts: first, model: {model},
         start: "stage:first", lock: image, unlock_groups: 1, context_length: 80,
         patch_dropout: 0.5, average: 0.9}}
  first: {{uses: train.clip, data: shards, batch_size: 8, samples_seen: 8, warmup_steps: 0,
         model: {model}}}
"""


@pytest.mark.soak(cpu_s=60)
def test_two_ranks_in_pieces_and_bf16_that_are_killed_end_at_the_same_bytes(tmp_path):
    """From a stage's weights, a tower locked, patches dropped, an average, over two seeds."""
    pool, recipe = write_pool(tmp_path / "pool"), tmp_path / "recipe.yaml"
    text = RANKS.replace("seeds: {seeds}}}\n", PIECES)
    recipe.write_text(text.format(path=pool, model=TINY_OPEN_CLIP))
    for name, fault in (("whole", "any:0"), ("killed", "step:1")):
        ended = clipmill_run(recipe, tmp_path / name, tmp_path / f"{name}-fault", fault=fault)
        assert ended.killed == (name == "killed"), ended.output
    ended = clipmill_run(recipe, tmp_path / "killed", tmp_path / "again")
    assert ended.code == 0, ended.output
    stored = [point for point in ended.points if point.startswith("step ")]
    assert len(stored) == 3, "it went on from its checkpoint: one step's here, two of the next seed"
    for file in ("model.safetensors", "loss.parquet", "model.json", "average/model.safetensors"):
        for seed in (0, 1):
            (whole,) = tmp_path.glob(f"whole/stages/clip-*/out/seed-{seed}.{file}")
            (killed,) = tmp_path.glob(f"killed/stages/clip-*/out/seed-{seed}.{file}")
            assert whole.read_bytes() == killed.read_bytes()


def write_pool(folder: Path) -> Path:
    """Twelve pictures with a caption each."""
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(row(i)["image"])
        (folder / f"{i}.txt").write_text(row(i)["texts"][0]["text"])
    return folder


@pytest.mark.drawn(one_in=3, cpu_s=60)
def test_two_ranks_that_are_killed_go_on_and_a_seed_is_trained_once_a_run(tmp_path):
    write_pool(tmp_path / "pool")
    one, two = (tmp_path / f"{name}.yaml" for name in ("one", "two"))
    one.write_text(RANKS.format(path=tmp_path / "pool", seeds=[0]))
    two.write_text(RANKS.format(path=tmp_path / "pool", seeds=[0, 1]))
    for name, fault in (("whole", "any:0"), ("killed", "step:1")):
        ended = clipmill_run(one, tmp_path / name, tmp_path / f"{name}-fault", fault=fault)
        assert ended.killed == (name == "killed"), ended.output
    for name, recipe in (("killed", one), ("killed", two)):
        ended = clipmill_run(recipe, tmp_path / name, tmp_path / f"{recipe.stem}-again")
        assert ended.code == 0, ended.output
    files = ("model.safetensors", "loss.parquet", "model.json")
    for file in files:
        (whole,) = tmp_path.glob(f"whole/stages/clip-*/out/{file}")
        (killed,) = tmp_path.glob(f"killed/stages/clip-*/out/{file}")
        (again,) = tmp_path.glob(f"killed/stages/clip-*/out/seed-0.{file}")
        assert whole.read_bytes() == killed.read_bytes() == again.read_bytes()
    logs = sorted(path.name for path in tmp_path.glob("killed/stages/clip-*/log/*"))
    assert logs == ["log.jsonl", "seed-1.log.jsonl"]  # seed 0 was taken from the first stage


def test_negatives_are_learnt_from_and_rows_without_them_counted(trained, tmp_path):
    def export(name, most):
        false = [[{"text": f"no {i}"}] if i < most else None for i in range(9)]
        return write_export(tmp_path / name, [row(i, negatives=false[i]) for i in range(9)])

    data = export("some", 6)
    folder = trained(data=data, loss="negatives")
    assert json.loads((folder / "out" / "model.json").read_text())["no_negative"] == 3
    assert weights(folder) != weights(trained(data=data))
    with pytest.raises(StageError, match="no row has a text in 'negatives'"):
        trained(data=export("none", 0), loss="negatives")


def test_rows_are_drawn_by_the_concepts_of_one_list(trained, tmp_path):
    def export(name, lists, **changes):
        found = [{"concept_ids": [i % 3, 9 - i], "concept_list": lists[i % 2]} for i in range(9)]
        return write_export(tmp_path / name, [row(i, **found[i], **changes) for i in range(9)])

    data, way = export("one", "aa"), {"sampling": "concepts", "batch_size": 4, "super_batch": 2}
    folder = trained(data=data, **way)
    assert json.loads((folder / "out" / "model.json").read_text())["concept_list"] == "a"
    assert weights(folder) != weights(trained(data=data, batch_size=4))
    assert weights(folder) != weights(trained(data=data, **way, concept_gain="frequency"))
    for name, lists, changes, words in (
        ("two", "ab", {}, "concepts of 2 lists: a, b"),
        ("one", "aa", {"super_batch": 3}, "the export has 9 rows, and a batch is chosen from 12"),
    ):
        with pytest.raises(StageError, match=words):
            trained(data=export(name, lists), **{**way, **changes})
    with pytest.raises(StageError, match="no column 'concept_ids', which `sampling` asks for"):
        trained(**way)
    with pytest.raises(StageError, match="decoded batch by batch"):
        ClipTraining(scale="debug", sampling="concepts").streams("parquet", "it")


def test_negatives_and_rows_by_concept_are_those_of_a_training_that_never_stopped(
    trained, resumed, tmp_path
):
    more = {"negatives": [{"text": "no thing"}], "concept_list": "a"}
    rows = [row(i, concept_ids=[i % 3, 20 - i], **more) for i in range(20)]
    data = write_export(tmp_path / "more", rows[:7], rows[7:])
    way = {"data": data, "loss": "negatives", "sampling": "concepts", "super_batch": 2}
    assert weights(resumed(**way)[0]) == weights(trained(**way))


@pytest.mark.parametrize("sampling", ["epochs", "shards"])
def test_two_views_and_edited_texts_are_those_of_a_training_that_never_stopped(
    trained, resumed, tmp_path, sampling
):
    (tmp_path / "words.txt").write_text("thing, matter, object\n")
    way = {"loss": "intra_modal", "image_views": 2, "text_views": 2, "sampling": sampling}
    way["synonyms"] = str(tmp_path / "words.txt")
    whole = weights(trained(**way))
    assert weights(resumed(**way)[0]) == whole
    others = ({"loss": "clip"}, {"text_views": 1}, {"image_views": 1}, {"synonyms": None})
    for other in others if sampling == "epochs" else ():
        assert weights(trained(**{**way, **other})) != whole
    before = ClipTraining(**way).digests
    (tmp_path / "words.txt").write_text("thing, matter\n")
    assert ClipTraining(**way).digests != before


def test_temperatures_and_centres_are_those_of_a_training_that_never_stopped(
    trained, resumed, tmp_path
):
    rows = [row(i, nearest_clusters=[i % 4, 4 + i % 3]) for i in range(11)]
    way = {"data": write_export(tmp_path / "more", rows[:9], rows[9:])}
    for loss in ({"loss": "tempnet"}, {"loss": "mlcd", "loss_settings": {"centres": 7}}):
        assert weights(resumed(**way, **loss)[0]) == weights(trained(**way, **loss))


def test_batches_by_loss_are_those_of_a_training_that_never_stopped(trained, resumed, tmp_path):
    rows = [row(i, easy=i / 9) for i in range(20)]
    way = {"data": write_export(tmp_path / "more", rows[:7], rows[7:]), "loss": "siglip"}
    jest = {**way, "sampling": "jest", "super_batch": 2, "reference_loss": "easy"}
    whole = weights(trained(**jest))
    assert weights(resumed(**jest)[0]) == whole != weights(trained(**way))
    with pytest.raises(StageError, match="no column 'none', which `sampling` asks for"):
        trained(**{**jest, "reference_loss": "none"})


OURS = ("clipmill.stages.clip", "clipmill.stages.readers", "clipmill.stages.towers", "numpy")


@pytest.mark.parametrize("way", [{}, {"sampling": "shards"}, {"sampling": "jest"}])
def test_a_training_leaves_no_model_and_no_pictures_to_a_search_for_garbage(trained, tmp_path, way):
    rows = [row(i, easy=i / 9) for i in range(20)]
    way = {"data": write_export(tmp_path / "more", rows[:7], rows[7:]), "loss": "siglip", **way}
    way |= {"super_batch": 2, "reference_loss": "easy"} if "jest" in way.values() else {}
    trained(**way)  # what is imported and compiled stays
    gc.collect()

    def living() -> set[str]:
        return {
            f"{type(it)} {id(it)}" for it in gc.get_objects() if f"{type(it)}"[8:].startswith(OURS)
        }

    gc.disable()
    try:
        before = living()
        trained(**way, snapshots=2)
        assert living() <= before
    finally:
        gc.enable()
