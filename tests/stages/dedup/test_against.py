"""AgainstEvaluation: which sample each row is nearest to, what leaks, and rows without a value."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.stages.dedup.against import AgainstEvaluation
from clipmill.stages.models.reference import Reference
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.mask import cut_out
from clipmill.stages.ops.images.perceptual import phash
from tests.stages.clip.exported import TINY, write_model
from tests.stages.task_folders import picture

VECTOR = pa.list_(pa.float32())


def table(**columns) -> pa.Table:
    rows = len(next(iter(columns.values())))
    uids = pa.array([number.to_bytes(16, "big") for number in range(1, rows + 1)], pa.binary(16))
    return pa.table({"uid": uids, **columns})


def compared(ctx, shards, tasks, trained=None, **settings) -> list[dict]:
    stage = AgainstEvaluation(tasks=str(tasks), **settings)
    stage.run(Inputs(rows=shards, model=trained), ctx)
    names = [column.name for column in stage.writes]
    out = pa.concat_tables(t.unify_dictionaries() for t in ctx.stored)
    assert {*out["reason"].to_pylist()} <= {None, *stage.reasons}
    return out.select([*names, "reason"]).to_pylist()


def leaks(ctx) -> dict:
    return json.loads((ctx.out / "leaks.json").read_text())


@pytest.fixture
def parquet(tmp_path):
    """Writes tasks of one Parquet file each."""

    def write(**tasks):
        folder = tmp_path / "parquet"
        folder.mkdir(exist_ok=True)
        for name, columns in tasks.items():
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return folder

    return write


def test_images_of_a_folder_are_found_by_their_hash(tasks, memory_shards, memory_context):
    codes = phash([decode(picture(number)) for number in (3, 11)]).tolist()
    rows = table(phash=pa.array([codes[0], codes[1] ^ 1, None, codes[0]], pa.uint64()))
    ctx = memory_context()
    a, b, c, d = compared(ctx, memory_shards(rows[:3], rows[3:]), tasks)
    assert (a["eval_distance"], a["eval_task"], a["reason"]) == (0, "colours", None)
    assert b["eval_distance"] <= 1
    assert list(c.values()) == [None, None, None, "no_hash"]
    assert d == a


def test_the_first_of_equally_near_samples_is_named_and_each_task_counts_its_leaks(
    parquet, memory_shards, memory_context
):
    def hashes(*codes):
        return pa.array(codes, pa.uint64())

    folder = parquet(
        a={"key": ["x", "y", "z"], "phash": hashes(0b111, 0b1, 0b1)},
        b={"key": ["w"], "phash": hashes(0b1)},
    )
    ctx = memory_context()
    rows = table(phash=hashes(0b1, 0b11, 0b1111000, None))
    found = compared(ctx, memory_shards(rows), folder)
    assert [tuple(row.values())[:3] for row in found] == [
        (0, "a", "y"),
        (1, "a", "x"),
        (5, "a", "y"),
        (None, None, None),
    ]
    assert leaks(ctx)["column"] == "eval_distance"
    assert leaks(ctx)["at"] == list(range(17))
    assert leaks(ctx)["tasks"] == {
        "a": {"samples": 3, "rows": [1, 2, 2, 2, 2] + [3] * 12},
        "b": {"samples": 1, "rows": [1, 2, 2, 2, 2] + [3] * 12},
    }


def test_values_equal_all_pairs_of_rows_and_samples_whatever_the_shards(
    parquet, memory_shards, memory_context
):
    rng = np.random.default_rng(0)
    for part in range(12):
        samples = rng.integers(0, 2 ** int(rng.choice([6, 64])), (3, 5), dtype=np.uint64)
        tasks = {f"t{part}-{n}": {"phash": pa.array(codes)} for n, codes in enumerate(samples)}
        folder = parquet(**tasks)
        for file in folder.iterdir():
            file.unlink() if file.stem not in tasks else None
        code_N = rng.integers(0, 2 ** int(rng.choice([6, 64])), 40, dtype=np.uint64)
        rows, cut = table(phash=pa.array(code_N)), int(rng.integers(0, 41))
        found = compared(memory_context(), memory_shards(rows[:cut], rows[cut:]), folder)
        distance_NM = np.bitwise_count(code_N[:, None] ^ samples.reshape(-1))
        for row, distance_M in zip(found, distance_NM, strict=True):
            best = distance_M.argmin()
            want = distance_M[best], f"t{part}-{best // 5}", str(best % 5)
            assert tuple(row.values())[:3] == want


def test_images_are_found_by_the_embedding_of_a_model(tasks, memory_shards, memory_context):
    embedding_ND = Reference().embed_images([decode(picture(number)) for number in (3, 11)])
    embedding_ND[1] *= 7
    vectors = [*embedding_ND.tolist(), None, [0.0] * Reference.width]
    rows = table(image_embedding=pa.array(vectors, VECTOR))
    ctx = memory_context()
    a, b, *bad = compared(ctx, memory_shards(rows), tasks, compare="embedding", model="reference")
    assert (a["eval_task"], a["eval_key"]) == ("colours", "03")
    assert (b["eval_task"], b["eval_key"]) == ("colours", "11")
    assert a["eval_cosine"] == b["eval_cosine"] == pytest.approx(1)
    reasons = ["no_embedding", "zero_or_nan_embedding"]
    assert [list(row.values()) for row in bad] == [[None] * 3 + [reason] for reason in reasons]
    assert leaks(ctx)["tasks"]["colours"]["rows"][-2:] == [2, 2]


def test_masked_images_are_found_behind_a_border_and_a_turn(
    memory_shards, memory_context, tmp_path
):
    rng, pictures = np.random.default_rng(0), {}
    for number in range(6):
        pictures[f"{number}"] = page = np.full((64, 64, 3), 255, np.uint8)
        for corner in rng.integers(12, 40, (4, 2)):
            cv2.rectangle(page, corner, corner + rng.integers(6, 16, 2), rng.uniform(0, 200, 3), -1)
    encoded = {key: cv2.imencode(".png", page)[1].tobytes() for key, page in pictures.items()}
    classes = {key: int(key) % 2 for key in encoded}
    write_set(EvaluationSet("pages", encoded, classes, ["a", "b"]), tmp_path / "tasks")
    turn = cv2.getRotationMatrix2D((32, 32), 7, 1)
    red = (200, 40, 40)
    turned = cv2.warpAffine(decode(encoded["4"]), turn, (64, 64), borderValue=red)
    framed = cv2.copyMakeBorder(turned, 9, 9, 3, 3, cv2.BORDER_CONSTANT, value=red)
    settings = {"compare": "embedding", "model": "reference"}
    found = {}
    for mask, rgb in ((None, framed), ("background", cut_out(framed))):
        vector = Reference().embed_images([rgb]).tolist()
        rows, ctx = table(image_embedding=pa.array(vector, VECTOR)), memory_context()
        (found[mask],) = compared(
            ctx, memory_shards(rows), tmp_path / "tasks", mask=mask, **settings
        )
        assert leaks(ctx)["tasks"]["pages"]["samples"] == 6
    assert (found["background"]["eval_key"], found["background"]["eval_task"]) == ("4", "pages")
    assert found["background"]["eval_cosine"] > 0.85 > found[None]["eval_cosine"], found


def test_a_stages_model_embeds_the_images(tasks, memory_shards, memory_context, tmp_path):
    folder = write_model(tmp_path / "model", "tiny", seed=0)
    rows = table(image_embedding=pa.array([[1.0] + [0.0] * (TINY.width - 1)], VECTOR))
    found = compared(
        memory_context(),
        memory_shards(rows),
        tasks,
        trained=str(folder),
        compare="embedding",
        model="stage:clip",
    )
    assert -1 <= found[0]["eval_cosine"] <= 1


def test_descriptors_can_come_in_parquet_files(parquet, memory_shards, memory_context):
    folder = parquet(isc={"isc": pa.array([[3, 4], [0, 1]], VECTOR)})
    rows = table(dedup=pa.array([[0.6, 0.8], [1, 0]], VECTOR))
    with pytest.raises(StageError, match="no column 'dedup'"):
        compared(memory_context(), memory_shards(rows), folder, compare="embedding", column="dedup")
    folder = parquet(isc={"dedup": pa.array([[3, 4, 5]], VECTOR)})
    with pytest.raises(StageError, match="3 wide, and the pool's are 2 wide") as error:
        compared(memory_context(), memory_shards(rows), folder, compare="embedding", column="dedup")
    assert error.value.args[1] == f"key `tasks`: task 'isc' in {folder}"
    folder = parquet(isc={"dedup": pa.array([[3, 4], [0, 1]], VECTOR)})
    ctx = memory_context()
    found = compared(ctx, memory_shards(rows), folder, compare="embedding", column="dedup")
    assert [row["eval_cosine"] for row in found] == pytest.approx([1, 0.6])
    at = dict(zip(leaks(ctx)["at"], leaks(ctx)["tasks"]["isc"]["rows"], strict=True))
    assert (at[0.5], at[0.604169], at[1.0]) == (2, 1, 1)


def test_a_task_that_changed_is_read_again_in_one_process(parquet, memory_shards, memory_context):
    rows, ctx = table(phash=pa.array([0b1], pa.uint64())), memory_context()
    for code in (0b1, 0b111):
        tasks = parquet(a={"phash": pa.array([code], pa.uint64())})
        (row,) = compared(ctx, memory_shards(rows), tasks)
        assert row["eval_distance"] == code.bit_count() - 1


def test_captions_are_found_by_the_words_they_share(parquet, memory_shards, memory_context):
    tags = "A red  Heart with a white border"
    folder = parquet(
        few={"key": ["short"], "text": ["red heart"]},
        words={"key": ["one", "two"], "text": ["an old brown dog asleep", tags]},
    )
    texts = ["a red heart with a white border | Free Icons", "red heart", None, " ", tags[:18]]
    texts.append("half of it: a red heart with a white cat")
    ctx = memory_context()
    rows = table(text=pa.array(texts))
    found = compared(ctx, memory_shards(rows), folder, compare="caption")
    assert [row["eval_overlap"] for row in found] == pytest.approx([1, 0, None, None, 0, 2 / 3])
    assert [row["eval_key"] for row in found] == ["two", None, None, None, None, "two"]
    assert [row["eval_task"] for row in found][:2] == ["words", None]
    assert [row["reason"] for row in found][2:4] == ["no_text", "empty_text"]
    assert leaks(ctx)["tasks"] == {
        "few": {"samples": 0, "too_short": 1, "rows": [0] * 10},
        "words": {"samples": 2, "too_short": 0, "rows": [2] * 6 + [1] * 4},
    }
    (row,) = compared(memory_context(), memory_shards(rows[1:2]), folder, compare="caption", size=2)
    assert (row["eval_overlap"], row["eval_task"]) == (1, "few")


def test_only_tasks_with_captions_are_compared_by_caption(tasks, memory_shards, memory_context):
    ctx = memory_context()
    rows = table(text=pa.array(["a red 00"]))
    (row,) = compared(ctx, memory_shards(rows), tasks, compare="caption", size=2)
    assert (row["eval_overlap"], row["eval_task"], row["eval_key"]) == (1, "words", "00")
    nobody = {"samples": 0, "too_short": 0, "rows": [0] * 10}
    assert leaks(ctx)["tasks"]["colours"] == nobody
    assert leaks(ctx)["tasks"]["words"] == {"samples": 14, "too_short": 0, "rows": [1] * 10}


@pytest.mark.parametrize("codes", [[], [None], [5]], ids=str)
def test_a_pool_of_a_row_or_none(codes, parquet, memory_shards, memory_context):
    folder = parquet(a={"phash": pa.array([7], pa.uint64())})
    ctx = memory_context()
    rows = table(phash=pa.array(codes, pa.uint64()))
    AgainstEvaluation(tasks=str(folder)).run(Inputs(rows=memory_shards(rows, rows[:0])), ctx)
    found = [d for part in ctx.stored for d in part["eval_distance"].to_pylist()]
    assert found == [None if code is None else 1 for code in codes]


def test_images_that_nothing_measures_and_tasks_without_captions_are_refused(
    tasks, parquet, memory_shards, memory_context
):
    rows = table(image_embedding=pa.array([[1.0]], VECTOR))
    with pytest.raises(StageError, match="nothing that makes a 'image_embedding' of them"):
        compared(memory_context(), memory_shards(rows), tasks, compare="embedding")
    rows = table(dhash=pa.array([1], pa.uint64()))
    with pytest.raises(StageError, match="nothing that makes a 'dhash' of them"):
        compared(memory_context(), memory_shards(rows), tasks, column="dhash")
    rows = table(text=pa.array(["x"]))
    folder = parquet(a={"text": pa.array([], pa.string())})
    with pytest.raises(StageError, match="no sample to compare with\n"):
        compared(memory_context(), memory_shards(rows), folder, compare="caption")
    folder = parquet(a={"text": ["一只猫坐在草地上看着远方", " "]})
    short = r"no sample to compare with: all captions \(2\) have fewer than 5 words"
    with pytest.raises(StageError, match=short) as error:
        compared(memory_context(), memory_shards(rows), folder, compare="caption")
    assert "`unit: character`" in error.value.args[2]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "reference"}, "does not ask for"),
        ({"compare": "embedding", "model": "hub:clip"}, "unknown scheme"),
        ({"compare": "embedding", "mask": "background"}, "`mask`, and no model"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(RecipeError, match=complaint):
        AgainstEvaluation(tasks="tasks", **settings)


def test_a_task_that_changes_is_seen(tasks):
    stage = AgainstEvaluation(tasks=str(tasks))
    before = stage.outside()
    (tasks / "colours" / "classnames.txt").write_text("red\n")
    assert stage.outside() != before
