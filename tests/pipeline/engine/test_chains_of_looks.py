"""What looks at pictures runs in one chain, so that each picture is decoded once."""

from clipmill.pipeline.engine.row_job import chained
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe

STAGES = ("annotate.image", "annotate.phash", "annotate.nsfw", "annotate.text_boxes")


def test_annotators_of_one_picture_share_a_worker_and_its_decode(tmp_path):
    lines = ["stages:", "  pool: {uses: ingest.image_folder, path: pictures}"]
    lines += [f"  s{number}: {{uses: {uses}, from: pool}}" for number, uses in enumerate(STAGES)]
    lines += ["  faces: {uses: annotate.faces, from: pool}"]
    lines += ["  marked: {uses: annotate.watermark, from: pool, file: watermark.onnx}"]
    (tmp_path / "looks.yaml").write_text("\n".join(lines))
    plan = make_plan(load_recipe(str(tmp_path / "looks.yaml")))
    (chain,) = chained([planned for name, planned in plan.stages.items() if name != "pool"])
    assert len(chain) == len(STAGES) + 2
