"""A stage that gives rows and files: each edge to it knows which of the two it reads."""

import json
import shutil

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe

CENTRE = "  centre: {uses: toy.centre, from: numbers, rounds: 3}\n"
REJOINED = '  again: {uses: toy.rejoined, from: centre, model: "stage:centre"}\n'
ROWS_ONLY = "  far: {uses: select.where, from: centre, where: distance > 5}\n"


def test_rows_and_files_of_one_stage_come_through_two_edges(engine):
    ran = engine.run(CENTRE + REJOINED)
    assert ran.complete
    assert ran.column("again", "sum") == list(range(31))
    centre = ran.outcome.state.stages["centre"]
    parents = ran.records("again")[0][0].parents
    assert parents.keys() == {"numbers", "centre", "stage:centre"}
    assert parents["centre"] == centre.shards[0].digest
    assert parents["stage:centre"] == centre.manifest.digest


def test_a_model_of_another_stage_stands_in_records_under_its_name_as_ever(engine):
    other = CENTRE.replace("centre:", "other:") + REJOINED.replace("stage:centre", "stage:other")
    ran = engine.run(CENTRE + other)
    assert ran.records("again")[0][0].parents.keys() == {"numbers", "centre", "other"}


def test_other_files_redo_what_reads_them_and_equal_rows_nothing_else(engine):
    ran = engine.run(CENTRE + REJOINED + ROWS_ONLY)
    folder = Storage(ran.outcome.state.stages["centre"].folder.uri)
    manifest = json.loads(folder.read("manifest.json"))["value"]
    folder.put("manifest.json", json.dumps({**manifest, "digest": "another"}).encode(), "manifest")
    again = engine.run(CENTRE + REJOINED + ROWS_ONLY)
    assert again.written("far") == ran.written("far")
    assert again.written("again") != ran.written("again")


def test_a_folder_from_before_the_stage_left_files_is_good_for_its_rows(engine):
    ran = engine.run(CENTRE + ROWS_ONLY)
    folder = before_files(ran)
    again = engine.run(CENTRE + ROWS_ONLY)
    assert again.complete
    assert again.written("centre") == {**ran.written("centre"), **again_listed(folder)}
    assert "centre.txt" not in str(list((ran.folder / "stages").rglob("*.txt")))


def test_a_reader_of_files_has_them_added_to_such_a_folder_and_its_rows_stay(engine):
    ran = engine.run(CENTRE + ROWS_ONLY)
    before_files(ran)
    again = engine.run(CENTRE + ROWS_ONLY + REJOINED)
    assert again.complete
    assert again.column("again", "sum") == list(range(31))
    assert again.written("far") == ran.written("far")
    rows = {name for name in ran.written("centre") if name[:6].isdigit()}
    assert {name: ran.written("centre")[name] for name in rows} == {
        name: again.written("centre")[name] for name in rows
    }


def before_files(ran):
    """The run's `centre` as a version that left no files had it."""
    folder = Storage(ran.outcome.state.stages["centre"].folder.uri)
    manifest = json.loads(folder.read("manifest.json"))["value"]
    shutil.rmtree(f"{folder.path}/out")
    text = json.dumps({**manifest, "outputs": [], "output_sha256": {}})
    folder.put("manifest.json", text.encode(), "manifest")
    return folder


def again_listed(folder):
    """When the manifest was written that `before_files` left."""
    return {e.name: e.mtime_ns for e in folder.entries() if e.name == "manifest.json"}


MEASURED = '  apart: {uses: toy.measured, from: numbers, centroids: "stage:centre"}\n'
EMBEDDED = """\
  emb: {uses: embed.clip, from: pool, model: reference}
  own: {uses: embed.clip, from: pool, model: "stage:clip", width: 64}
  all: {uses: export.parquet, from: pool}
  clip: {uses: train.clip, data: all}
  near: {uses: cluster.kmeans, from: emb, clusters: 2}
  again: {uses: cluster.kmeans, from: own, clusters: 2}
"""


def test_centroids_are_an_edge_of_their_own(engine):
    ran = engine.run(CENTRE + MEASURED)
    assert ran.complete
    assert ran.column("apart", "apart") == ran.column("centre", "distance")
    other = engine.run(CENTRE.replace("rounds: 3", "rounds: 1") + MEASURED)
    assert other.column("apart", "apart") != ran.column("apart", "apart")


def test_a_stage_without_centroids_is_refused_as_such(engine):
    steps = "  steps: {uses: toy.steps, from: numbers, gate: none}\n" + MEASURED.replace(
        "centre", "steps"
    )
    with pytest.raises(RecipeError, match="'steps' gives model, and `centroids` takes centroids"):
        engine.plan(steps)


def test_a_stage_is_told_which_model_made_what_it_reads(tmp_path):
    path = tmp_path / "mine.yaml"
    pool = "  pool: {uses: ingest.image_folder, path: pictures}\n"
    path.write_text(f"stages:\n{pool}{EMBEDDED}")
    plan = make_plan(load_recipe(str(path)))
    assert plan.models_of("near") == {"image_embedding": "reference"}
    trained = f"train.clip@{plan.stages['clip'].fingerprint}"
    assert plan.models_of("again") == {"image_embedding": trained}


def test_a_start_is_an_edge_to_a_training(tmp_path):
    def plan(first="clip", samples=512):
        pool = "  pool: {uses: ingest.image_folder, path: pictures}\n"
        made = EMBEDDED.replace(
            "data: all}", f"data: all, samples_seen: {samples}, warmup_steps: 1}}"
        )
        tuned = f'  tuned: {{uses: train.clip, data: all, start: "stage:{first}"}}\n'
        (tmp_path / "mine.yaml").write_text(f"stages:\n{pool}{made}{tuned}")
        return make_plan(load_recipe(str(tmp_path / "mine.yaml"))).stages["tuned"]

    assert plan().needs == ("all", "clip")
    assert plan().fingerprint != plan(samples=1024).fingerprint
    with pytest.raises(RecipeError, match="'emb' gives rows, and `start` takes model"):
        plan(first="emb")


def test_an_edge_to_what_a_stage_does_not_give_names_all_that_it_gives(engine):
    with pytest.raises(
        RecipeError, match="'centre' gives rows and model and centroids, and `data` takes data"
    ):
        engine.plan(CENTRE + "  clip: {uses: train.clip, data: centre}\n")
    leaks = "  files: {uses: export.uid_list, from: numbers}\n"
    leaks += "  leaks: {uses: evaluate.leaks, data: files, tasks: eval}\n"
    with pytest.raises(RecipeError, match="'leaks' gives nothing, and `from` takes rows"):
        engine.plan(leaks + "  words: {uses: annotate.caption, from: leaks}\n")


AIMED = (
    '  aimed: {uses: select.image_based, from: emb, centroids: c.parquet, targets: "stage:%s"}\n'
)
EXPORTED = """\
  vectors: {uses: export.parquet, from: emb, columns: [image_embedding]}
  leaner: {uses: export.parquet, data: vectors, columns: [image_embedding], uid_hex: false}
"""


def test_targets_are_an_edge_to_an_export_and_the_plan_knows_what_made_them(tmp_path):
    path = tmp_path / "mine.yaml"
    pool = "  pool: {uses: ingest.image_folder, path: pictures}\n"
    path.write_text(f"stages:\n{pool}{EMBEDDED}{EXPORTED}{AIMED % 'leaner'}")
    plan, other = (
        make_plan(load_recipe(str(path), overrides))
        for overrides in ([], ["vectors.uid_hex=false"])
    )
    assert plan.stages["aimed"].targets == "leaner"
    assert "leaner" in plan.stages["aimed"].needs
    assert plan.models_of("leaner") == {"image_embedding": "reference"}
    assert plan.model_named("emb") == "reference"
    assert plan.stages["aimed"].fingerprint != other.stages["aimed"].fingerprint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (AIMED % "emb", "'emb' gives rows, and `targets` takes data"),
        (AIMED % "nobody", "no stage 'nobody'"),
        (AIMED.replace("from: emb", "from: emb, data: vectors") % "vectors", "takes no `data`"),
    ],
)
def test_targets_that_no_export_gives_are_refused_at_plan(tmp_path, line, said):
    path = tmp_path / "mine.yaml"
    pool = "  pool: {uses: ingest.image_folder, path: pictures}\n"
    path.write_text(f"stages:\n{pool}{EMBEDDED}{EXPORTED}{line}")
    with pytest.raises(RecipeError, match=said):
        make_plan(load_recipe(str(path)))


def test_rows_of_one_clustering_do_not_meet_the_centroids_of_another(tmp_path):
    path = tmp_path / "mine.yaml"
    pool = "  pool: {uses: ingest.image_folder, path: pictures}\n"
    emb = "  emb: {uses: embed.clip, from: pool, model: reference}\n"
    few = "  few: {uses: cluster.kmeans, from: emb, clusters: 2}\n"
    many = "  many: {uses: cluster.kmeans, from: few, clusters: 9}\n"
    dense = '  dense: {uses: select.density, from: many, rows: 5, centroids: "stage:%s"}\n'
    path.write_text(f"stages:\n{pool}{emb}{few}{many}{dense % 'few'}")
    with pytest.raises(RecipeError, match="'cluster_id' is of 'many', and the centroids are of"):
        make_plan(load_recipe(str(path)))
    path.write_text(f"stages:\n{pool}{emb}{few}{many}{dense % 'many'}")
    assert make_plan(load_recipe(str(path))).stages["dense"].centroids == "many"
