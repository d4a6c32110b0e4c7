"""evaluate.zero_shot: what it stores, of which model, and the tasks that it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.evaluate import zero_shot
from clipmill.stages.evaluate.zero_shot import ZeroShot
from clipmill.stages.ops.tasks.folders import CLASSNAMES
from clipmill.stages.ops.vectors.matrices import unit_rows
from tests.stages.broken_models import DAMAGES, damaged
from tests.stages.clip.exported import TINY_OPEN_CLIP, known_to_open_clip, write_model
from tests.stages.task_folders import COLOURS, NAMES, picture, write_tar


class Colours:
    """A model that knows colours by sight and by name, and nothing else."""

    width, sha256 = 3, None

    def embed_images(self, image_HW3):
        return unit_rows(np.array([np.median(image, axis=(0, 1)) - 120 for image in image_HW3]))

    def embed_texts(self, texts):
        known = {
            name: np.array(bgr[::-1]) - 120.0 for name, bgr in zip(NAMES, COLOURS, strict=True)
        }
        other = np.array([1.0, -2, 1])
        found = [next((known[w] for w in text.split() if w in known), other) for text in texts]
        return unit_rows(np.array(found))


@pytest.fixture
def evaluated(memory_context, tasks, monkeypatch):
    """Results and context of an evaluation of the tasks."""

    def make(model=None, **settings):
        if model is not None:
            monkeypatch.setattr(zero_shot, "load", lambda *_: model)
        ctx = memory_context()
        ZeroShot(model="reference", tasks=str(tasks), **settings).run(Inputs(rows=[]), ctx)
        (found,) = json.loads((ctx.out / "results.json").read_text())["models"]
        return found, ctx.out

    return make


def test_a_model_that_knows_the_answer_is_right(evaluated):
    results, out = evaluated(Colours())
    colours = results["tasks"]["colours"]
    assert (colours["kind"], colours["pictures"], colours["classes"]) == ("classification", 20, 5)
    assert {m["value"] for m in colours["metrics"].values()} == {1.0}
    assert colours["metrics"]["acc1"]["low"] == pytest.approx(0.839, abs=1e-3)
    ranks = pq.read_table(out / "colours.parquet").to_pydict()
    assert ranks["predicted"] == ranks["label"] == [i % 5 for i in range(20)]


def test_vectors_stand_beside_the_ranks_only_if_they_are_asked_for(evaluated):
    plain, out = evaluated(Colours())
    without = pq.read_table(out / "colours.parquet")
    with_vectors, out = evaluated(Colours(), embeddings=True)
    table = pq.read_table(out / "colours.parquet")
    assert table.drop_columns("embedding").equals(without)
    assert (
        "embedding" not in without.column_names + pq.read_table(out / "words.parquet").column_names
    )
    assert len(table["embedding"][0]) == 3
    assert with_vectors == plain


def test_retrieval_counts_captions_and_images_each_its_own_way(evaluated):
    """Images 0 and 5 are red, 1 and 6 green: of what ties, each is a hit half the time."""
    results, out = evaluated(Colours())
    words = results["tasks"]["words"]
    assert (words["kind"], words["pictures"], words["captions"]) == ("retrieval", 7, 14)
    assert words["metrics"]["image_retrieval_recall@10"]["value"] == 1
    ranks = pq.read_table(out / "words.parquet")
    tied = [[0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]
    names = ("text_rank", "text_rank_tied", "text_rank_tied_right")
    assert [[*one] for one in zip(*(ranks[it].to_pylist() for it in names), strict=True)] == tied
    names = ("image_ranks", "image_ranks_tied", "image_ranks_tied_right")
    firsts = ([first for first, _ in ranks[it].to_pylist()] for it in names)
    assert [[*one] for one in zip(*firsts, strict=True)] == tied
    assert words["metrics"]["text_retrieval_recall@1"]["value"] == pytest.approx(5 / 7)


def test_a_picture_without_captions_counts_as_a_miss_and_has_no_rank(evaluated, tasks):
    members = {f"{key}.png": picture(key) for key in range(3)}
    captions = {"0.txt": b"red", "1.txt": b"", "2.txt": b"blue\nnavy"}
    write_tar(tasks / "words" / "test" / "0.tar", dict(sorted({**members, **captions}.items())))
    results, out = evaluated(Colours())
    words = results["tasks"]["words"]
    assert (words["pictures"], words["captions"]) == (3, 3)
    assert words["metrics"]["text_retrieval_recall@10"]["value"] == pytest.approx(2 / 3)
    ranks = pq.read_table(out / "words.parquet")
    assert ranks["text_rank"].to_pylist() == [0, None, 0]
    assert [len(of_one) for of_one in ranks["image_ranks"].to_pylist()] == [1, 0, 2]


def test_a_task_without_any_caption_is_refused(evaluated, tasks):
    write_tar(tasks / "words" / "test" / "0.tar", {"0.png": picture(0), "0.txt": b"\n"})
    with pytest.raises(StageError, match="no caption"):
        evaluated(Colours())


def test_prompts_of_a_class_are_averaged(evaluated, tasks):
    """Three templates, one of which leads astray: the mean still points to the class."""
    (tasks / "colours" / "zeroshot_classification_templates.txt").write_text(
        "{c}\na {c} thing\nthing_{c}\n"
    )
    results, _ = evaluated(Colours())
    assert results["tasks"]["colours"]["metrics"]["acc1"]["value"] == 1


def test_the_reference_model_runs_and_results_repeat(evaluated):
    first, _ = evaluated()
    second, _ = evaluated()
    assert first == second
    assert first["model"] == "reference"
    assert 0 <= first["tasks"]["colours"]["metrics"]["acc1"]["value"] <= 1


def test_results_name_the_bytes_they_are_of(evaluated, tasks):
    before, _ = evaluated()
    (tasks / "colours" / CLASSNAMES).write_text("blue\nred\ngreen\ngrey\nwhite\n")
    after, _ = evaluated()
    digests = [{name: task["sha256"] for name, task in r["tasks"].items()} for r in (before, after)]
    assert digests[0]["colours"] != digests[1]["colours"]
    assert digests[0]["words"] == digests[1]["words"]


def test_a_task_or_a_model_that_changes_is_another_item(memory_context, tasks, tmp_path):
    items = []
    ctx = memory_context()
    ctx.map = lambda fn, given: items.append(given) or [{} for _ in given]
    for sha256 in ("a", "b"):
        (tmp_path / "model" / "out").mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / "out" / "model.json").write_text(json.dumps({"sha256": sha256}))
        inputs = Inputs(rows=[], model=str(tmp_path / "model"))
        ZeroShot(model="stage:clip", tasks=str(tasks)).run(inputs, ctx)
    first, _, second, _ = items
    assert [item["task"] for item in first] == ["colours", "words"]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_one_file_of_weights_in_two_networks_is_two_models(memory_context, tasks, monkeypatch):
    model = Colours()
    model.sha256 = "ab" * 32
    monkeypatch.setattr(zero_shot, "load", lambda *_: model)
    ctx, keys = memory_context(), []
    kept = ctx.once
    ctx.once = lambda key, *rest: keys.append(key) or kept(key, *rest)
    for network in ("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-32"):
        stage = ZeroShot(model=f"open_clip:{network}@weights.pt", tasks=str(tasks))
        stage.run(Inputs(rows=[]), ctx)
    assert keys[:2] == keys[4:]
    assert not {*keys[:2]} & {*keys[2:4]}


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        (CLASSNAMES, None, "no such file"),
        (CLASSNAMES, "red\ngreen\n", "class 2, and classnames.txt names 2"),
        ("test/nshards.txt", "3", "1.tar is missing"),
    ],
    ids=["no class names", "too few class names", "a missing shard"],
)
def test_a_task_that_is_not_right_is_refused_with_the_way_to_see_it_all(
    evaluated, tasks, file, text, found
):
    path: Path = tasks / "colours" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(StageError) as error:
        evaluated()
    assert found in error.value.args[0]
    assert error.value.args[1].startswith(f"stage 'it', key `tasks`: {tasks}/colours/")
    assert "clipmill doctor tasks" in error.value.args[2]
    if "class 2" not in found:  # which pictures alone tell
        with pytest.raises(StageError, match=found) as error:
            ZeroShot(model="reference", tasks=str(tasks)).look()
        assert error.value.args[1].startswith(f"key `tasks`: {tasks}/colours/")


def test_an_unknown_scheme_is_refused_at_plan():
    with pytest.raises(RecipeError, match="unknown scheme 'hub'"):
        ZeroShot(model="hub:clip", tasks="tasks")


def test_a_stages_model_is_read_from_the_folder_that_the_engine_names(
    memory_context, tasks, tmp_path, trained_model
):
    ctx = memory_context()
    inputs = Inputs(rows=[], model=str(trained_model))
    ZeroShot(model="stage:clip", tasks=str(tasks)).run(inputs, ctx)
    results = json.loads((ctx.out / "results.json").read_text())
    card = json.loads((trained_model / "out" / "model.json").read_text())
    (found,) = results["models"]
    assert found["model"] == card["sha256"]


def test_a_network_of_open_clips_scores_the_same_by_its_name_and_as_a_checkpoint(
    open_clip, memory_context, tasks, tmp_path
):
    folder = write_model(tmp_path / "vit", TINY_OPEN_CLIP, seed=0)
    weights = load_file(folder / "out" / "model.safetensors")
    torch.save(weights, tmp_path / "vit.pt")
    found = []
    with known_to_open_clip() as name:
        for model in (f"open_clip:{name}@{tmp_path / 'vit.pt'}", f"checkpoint:{folder}"):
            ctx = memory_context()
            ZeroShot(model=model, tasks=str(tasks)).run(Inputs(rows=[]), ctx)
            (results,) = json.loads((ctx.out / "results.json").read_text())["models"]
            found.append(results["tasks"])
            ranks = pq.read_table(ctx.out / "colours.parquet")
            assert len(set(ranks["predicted"].to_pylist())) > 1
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", DAMAGES, ids=[*DAMAGES])
def test_a_broken_model_is_refused_by_name_and_gets_no_number(
    memory_context, tasks, trained_model, damage
):
    damaged(trained_model, damage)
    ctx, model = memory_context(), f"checkpoint:{trained_model}"
    with pytest.raises(StageError, match="vectors are zero or not finite: NaN") as error:
        ZeroShot(model=model, tasks=str(tasks)).run(Inputs(rows=[]), ctx)
    assert error.value.args[1] == f"model '{model} out/model.json'"  # which of several seeds
    assert not (ctx.out / "results.json").exists()


def test_a_picture_that_a_model_has_no_vector_of_is_a_miss_with_no_rank(evaluated):
    class Blind(Colours):
        """Sees no white, which is 1 picture in 5."""

        def embed_images(self, image_HW3):
            row_ND = super().embed_images(image_HW3)
            row_ND[np.array([image[-1, -1].min() > 250 for image in image_HW3])] = np.nan
            return row_ND

    results, out = evaluated(Blind())
    metrics = results["tasks"]["colours"]["metrics"]
    assert {metrics[it]["value"] for it in ("acc1", "acc5", "mean_per_class_recall")} == {0.8}
    ranks = pq.read_table(out / "colours.parquet")
    assert ranks["rank"].null_count == ranks["predicted"].null_count == 4
    assert results["tasks"]["words"]["metrics"]["text_retrieval_recall@10"]["value"] < 1


def test_every_seed_of_a_stage_is_evaluated(memory_context, tasks, tmp_path, trained_model):
    out = tmp_path / "several" / "out"
    out.mkdir(parents=True)
    for seed in (10, 9):
        for file in ("model.json", "model.safetensors"):
            shutil.copy(trained_model / "out" / file, out / f"seed-{seed}.{file}")
        card = json.loads((out / f"seed-{seed}.model.json").read_text())
        (out / f"seed-{seed}.model.json").write_text(json.dumps(card | {"seed": seed}))
    ctx = memory_context()
    inputs = Inputs(rows=[], model=str(tmp_path / "several"))
    ZeroShot(model="stage:clip", tasks=str(tasks)).run(inputs, ctx)
    nine, ten = json.loads((ctx.out / "results.json").read_text())["models"]
    assert (nine["seed"], ten["seed"]) == (9, 10)
    assert nine["tasks"] == ten["tasks"]  # the same weights under two names
    ranks = sorted(path.name for path in ctx.out.glob("*.parquet"))
    assert ranks == [f"seed-{s}.{task}.parquet" for s in (10, 9) for task in ("colours", "words")]


def test_notes_refuse_nothing(evaluated, tasks):
    (tasks / "colours" / CLASSNAMES).write_text("red\nred\nblue\ngrey\nwhite\nblack\n")
    results, _ = evaluated()
    assert results["tasks"]["colours"]["classes"] == 6


def test_a_folder_without_tasks_is_refused(memory_context, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(StageError, match="no task"):
        ZeroShot(model="reference", tasks=str(tmp_path / "none")).run(
            Inputs(rows=[]), memory_context()
        )
