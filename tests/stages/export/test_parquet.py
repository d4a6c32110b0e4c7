"""export.parquet: the rows that leave, what they carry, and files that no worker changes."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.fingerprint import settings_of
from clipmill.metadata.schema import FACE_BBOXES, LOSS_WEIGHT, REPEATS, TEXTS
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export._leaving import Dropped
from clipmill.stages.export.parquet import Parquet
from clipmill.stages.ops.images.blur import blurred
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.encoded import encode


def export(ctx, shards, **settings) -> pa.Table:
    Parquet(**settings).run(Inputs(rows=shards), ctx)
    files = json.loads((ctx.out / "dataset.json").read_text())["files"]
    return pa.concat_tables(pq.read_table(ctx.out / file["file"]) for file in files)


def test_kept_rows_leave_with_their_images_captions_and_columns(
    pool, leaving, memory_shards, memory_context
):
    shards = memory_shards(pool[:50], pool[50:50], pool[50:])
    out = export(memory_context(), shards, columns=("language", "score"), rows_per_shard=60)
    said = ["uid", "uid_hex", "image", "caption", "texts", "repeats", "loss_weight", "sample_index"]
    assert out.column_names == [*said, "language", "score"]
    out, leaving = out.sort_by("uid"), leaving.sort_by("uid")
    for name in ("uid", "image"):
        assert out[name].to_pylist() == leaving[name].to_pylist()
    assert out["language"].to_pylist() == leaving["language"].to_pylist()
    assert out["score"].type == pa.float32()
    assert out["uid_hex"].to_pylist() == [uid.hex() for uid in leaving["uid"].to_pylist()]
    assert out["caption"].to_pylist() == leaving["text"].to_pylist()
    caption = {"source": "original", "model": None, "prompt_id": None, "label": "original"}
    assert out["texts"].to_pylist() == [
        [{"text": t, **caption}] for t in leaving["text"].to_pylist()
    ]
    assert [out.schema.field(c.name).type for c in (TEXTS, REPEATS, LOSS_WEIGHT)] == [
        c.dtype for c in (TEXTS, REPEATS, LOSS_WEIGHT)
    ]
    assert set(out["repeats"].to_pylist()) == set(out["loss_weight"].to_pylist()) == {1}


def test_boxes_of_faces_are_blurred_and_rows_whose_boxes_are_unknown_or_none_stay(
    pool, leaving, memory_shards, memory_context
):
    box, ctx = [0.1, 0.1, 0.9, 0.9], memory_context()
    of = ([box], [], None, [box, [1.0, 0.0, 0.5, 1.0]])
    boxes = pa.array([of[i % 4] for i in range(240)], FACE_BBOXES.dtype)
    known = {u: of[i % 4] for i, u in enumerate(pool["uid"].to_pylist())}
    broken = next(uid for uid in leaving["uid"].to_pylist() if known[uid] == [box])
    image = [b"<html>" if row["uid"] == broken else row["image"] for row in pool.to_pylist()]
    pool = pool.set_column(1, "image", pa.array(image)).append_column("face_bboxes", boxes)
    shards = memory_shards(pool[:100], pool[100:])
    out = export(ctx, shards, blur="face_bboxes", columns=("face_bboxes",)).to_pylist()
    expected = {
        row["uid"]: row["image"] if known[row["uid"]] == [] else blurred_to_webp(row["image"], box)
        for row in leaving.to_pylist()
        if known[row["uid"]] in ([], [box])
    }
    assert {row["uid"]: row["image"] for row in out} == expected | {broken: None}
    counts = json.loads((ctx.out / "dataset.json").read_text())["counts"]
    lost = [known[uid] for uid in leaving["uid"].to_pylist() if known[uid] not in ([], [box])]
    assert counts["no_boxes"] == lost.count(None) > 30
    assert counts["bad_box"] == len(lost) - lost.count(None) > 30
    assert "face_bboxes" not in Parquet().reads
    assert "blur" not in settings_of(Parquet())


def blurred_to_webp(body: bytes, box: list[float]) -> bytes:
    return encode(blurred(decode(body), [box]), "webp", 100)


def test_pictures_alone_leave_with_empty_captions(pool, memory_shards, memory_context):
    shards = memory_shards(pool.drop_columns(["text"]))
    out = export(memory_context(), shards, captions=False)
    kept = pool.filter(pool["keep"].fill_null(False))
    assert len(out) == kept["image"].is_valid().to_pylist().count(True) > 140
    assert set(out["caption"].to_pylist()) == {""}
    assert "text" not in Parquet(captions=False).reads
    assert settings_of(Parquet(captions=False))["captions"] is False


def test_a_licence_and_a_page_are_written_where_the_recipe_says_them(
    pool, memory_shards, memory_context
):
    ctx = memory_context()
    said = {"license": "CC-BY-4.0", "url": "https://example.org/set"}
    out = export(ctx, memory_shards(pool), uid_hex=False, **said)
    assert "uid_hex" not in out.column_names
    for name in ("croissant.json", "dataset.json"):
        assert said.items() <= json.loads((ctx.out / name).read_text()).items()


def test_settings_that_came_later_leave_the_fingerprint_as_it_was():
    stage = Parquet()
    assert settings_of(stage) == {"rows_per_shard": 10_000, "columns": []}
    assert settings_of(Parquet(license="CC0-1.0"))["license"] == "CC0-1.0"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "example.org"}, "begins with https://"),
        ({"columns": ("caption",)}, "'caption', which this export has anyway"),
        ({"columns": ("a", "b", "a")}, "'a' twice"),
    ],
)
def test_settings_that_cannot_be_written_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Parquet(**settings)


def test_rows_that_a_stage_lost_leave_with_their_reason_and_without_what_they_lack(
    pool, memory_shards, memory_context
):
    pool = pool.append_column(
        "subset.reason", pa.array([None, "score >= 0.5", "no_text"] * 80).dictionary_encode()
    )
    dropped = Dropped("subset", "score >= 0.5", decided=("score",))
    out = export(memory_context(), memory_shards(pool), dropped=dropped).sort_by("uid")
    lost = pool.take(list(range(1, 240, 3))).sort_by("uid")
    for name, was in (("uid", "uid"), ("image", "image"), ("caption", "text"), ("score", "score")):
        assert out[name].to_pylist() == lost[was].to_pylist()
    assert out["image"].null_count == 4
    assert [len(texts) for texts in out["texts"].to_pylist()].count(0) == 4
    assert set(out["reason"].to_pylist()) == {"score >= 0.5"}


def test_an_export_with_rows_that_lack_a_picture_is_exported_again_without_them(pool, made):
    pool = pool.append_column("subset.reason", pa.array(["bad", None, None] * 80))
    first = made(Parquet(dropped=Dropped("subset", "bad")), pool=pool)
    lacks = pq.read_table(first / "out/00000.parquet")["image"].null_count
    again = made(Parquet(), data=first)
    counts = json.loads((again / "out/dataset.json").read_text())["counts"]
    assert (counts["rows"], counts["no_image"]) == (80, lacks) == (80, 4)


def test_load_dataset_reads_the_folder(
    pool, leaving, datasets, memory_shards, memory_context, tmp_path
):
    ctx = memory_context()
    export(ctx, memory_shards(pool), rows_per_shard=60)
    rows = datasets.load_dataset(str(ctx.out), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows["caption"]) == set(leaving["text"].to_pylist())
    assert set(rows["uid_hex"]) == {uid.hex() for uid in leaving["uid"].to_pylist()}


def test_repeats_and_weights_go_through(pool, memory_shards, memory_context):
    given = pool.append_column("repeats", pa.array([3] * 239 + [None], pa.int32()))
    given = given.append_column("loss_weight", pa.array([0.5] * 240, pa.float32()))
    out = export(memory_context(), memory_shards(given))
    assert sorted(set(out["repeats"].to_pylist())) == [1, 3]
    assert set(out["loss_weight"].to_pylist()) == {0.5}


def test_a_row_in_a_file_does_not_depend_on_which_task_or_run_wrote_it(
    pool, memory_shards, memory_context
):
    shards = memory_shards(*(pool[start : start + 24] for start in range(0, 240, 24)))
    once, again, other = memory_context(), memory_context(), memory_context(seed=1)
    in_order = again.map
    again.map = lambda fn, items: in_order(fn, items[::-1])[::-1]  # the last worker is the first
    for ctx in (once, again, other):
        export(ctx, shards, rows_per_shard=40)
    files = {path.name: path.read_bytes() for path in once.out.iterdir()}
    assert files == {path.name: path.read_bytes() for path in again.out.iterdir()}
    assert files != {path.name: path.read_bytes() for path in other.out.iterdir()}
    assert len(files) > 5


def test_rows_are_shuffled_beyond_their_shard(pool, memory_shards, memory_context):
    shards = memory_shards(*(pool[start : start + 24] for start in range(0, 240, 24)))
    ctx = memory_context()
    export(ctx, shards, rows_per_shard=40)
    number = {uid: i for i, uid in enumerate(pool["uid"].to_pylist())}
    first = [number[u] for u in pq.read_table(ctx.out / "00000.parquet")["uid"].to_pylist()]
    assert len({n // 24 for n in first}) >= 2
    assert first != sorted(first)


def test_dataset_json_names_every_file_and_every_row_that_stayed(
    pool, leaving, memory_shards, memory_context
):
    ctx = memory_context()
    export(ctx, memory_shards(pool), rows_per_shard=50)
    summary = json.loads((ctx.out / "dataset.json").read_text())
    assert summary["counts"] == {
        "rows": 240,
        "exported": len(leaving),
        "not_kept": 80,
        "no_image": 8,
        "no_text": 8,
    }
    assert sum(summary["counts"].values()) == 2 * 240
    assert summary["rows"] == len(leaving)
    for file in summary["files"]:
        body = (ctx.out / file["file"]).read_bytes()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (file["bytes"], file["sha256"])
        assert pq.read_metadata(ctx.out / file["file"]).num_rows == file["rows"] <= 50
    assert {path.name for path in ctx.out.iterdir()} == {
        "README.md",
        "croissant.json",
        "dataset.json",
        *(f["file"] for f in summary["files"]),
        *(f["file"].replace(".parquet", ".places.npy") for f in summary["files"]),
    }


def test_places_lead_back_to_every_row_of_a_file_though_uids_repeat(
    pool, memory_shards, memory_context
):
    uid = pa.array([bytes(16)] * 240, pool["uid"].type)
    shards = memory_shards(*(pool.set_column(0, "uid", uid)[n : n + 80] for n in (0, 80, 160)))
    ctx = memory_context()
    export(ctx, shards, rows_per_shard=60)
    files = sorted(ctx.out.glob("*.parquet"))
    assert len(files) > 2
    for file in files:
        places = np.load(file.with_suffix(".places.npy")).tolist()
        images = [shards[shard]["image"][position].as_py() for shard, position in places]
        assert images == pq.read_table(file)["image"].to_pylist()


def test_row_groups_are_small_enough_to_stream(pool, memory_shards, memory_context):
    large = pool.set_column(1, "image", pa.array([bytes(400_000)] * 240))
    ctx = memory_context()
    export(ctx, memory_shards(large))
    assert pq.read_metadata(ctx.out / "00000.parquet").num_row_groups > 1


def test_nothing_kept_is_an_empty_set_with_its_counts(pool, memory_shards, memory_context):
    ctx = memory_context()
    nothing = pool.set_column(4, "keep", pa.array([False] * 240))
    Parquet().run(Inputs(rows=memory_shards(nothing)), ctx)
    summary = json.loads((ctx.out / "dataset.json").read_text())
    assert (summary["files"], summary["counts"]["not_kept"]) == ([], 240)


def test_scratch_disk_is_left_empty(pool, memory_shards, memory_context):
    ctx = memory_context()
    export(ctx, memory_shards(pool))
    assert list(ctx.worker.scratch.iterdir()) == []


def test_chosen_columns_are_read_by_name_whatever_their_type():
    assert Parquet(columns=("score.clip_score",)).reads[-1] == "score.clip_score"


def test_plan_says_what_croissant_lacks(clipmill):
    said = clipmill("plan", "quickstart")
    lacks = "set `license` and `url` to share it: Croissant asks"
    assert f"  note: 'raw', 'curated': {lacks}\n" in said.out
    assert Parquet(license="CC0-1.0").note == "set `url` to share it: Croissant asks"
    assert Parquet(license="CC0-1.0", url="https://example.org/set").note == ""
