"""evaluate.leaks: near pictures, texts word for word, masks, tasks that are wrong."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.stages.evaluate import leaks
from clipmill.stages.evaluate.leaks import EvaluationLeaks
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.perceptual import phash
from tests.stages.clip.exported import caption, row, write_export

CLASSES = ["red circle", "blue star"]


def drawn(seed: int, quality: int | None = None) -> bytes:
    """Encoded smooth noise, whose pHash differs from another seed's in about half its bits."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    rgb = cv2.resize(blocks, (48, 48), interpolation=cv2.INTER_CUBIC)
    if quality is None:
        return cv2.imencode(".png", rgb)[1].tobytes()
    return cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture
def tasks(tmp_path):
    """`shapes`, four pictures of two classes, and `words`, two pictures with captions."""
    folder, pictures = tmp_path / "tasks", {f"{i:02d}": drawn(i) for i in range(4)}
    classes = {key: int(key) % 2 for key in pictures}
    write_set(EvaluationSet("shapes", pictures, classes, CLASSES), folder)
    captions = {"00": ["A  quiet harbour", "boats"], "09": ["a hill"]}
    write_set(EvaluationSet("words", {"00": drawn(0), "09": drawn(9)}, captions=captions), folder)
    return folder


def texts(*words: str | None) -> list:
    return [caption(word) for word in words]


@pytest.fixture
def found(tmp_path, tasks, memory_context):
    """Leaks as (position, task, kind, sample, distance) by file, and leaks.json."""

    def make(*shards, mask=None, **settings):
        ctx = memory_context()
        data = write_export(tmp_path / "export", *shards)
        inputs = Inputs(rows=[], data=data, mask=mask)
        EvaluationLeaks(tasks=str(tasks), **settings).run(inputs, ctx)
        table = pq.read_table(ctx.out / "leaks.parquet")
        of_file = {f"{n:05d}.parquet": [] for n in range(len(shards))}
        for leak in table.drop_columns(["uid"]).to_pylist():
            of_file[leak.pop("file")].append(tuple(leak.values()))
        uids = [it["uid"] for rows in shards for it in rows]
        assert {*table["uid"].to_pylist()} <= {*uids}
        return list(of_file.values()), json.loads((ctx.out / "leaks.json").read_text())

    return make


NEAR = drawn(2, quality=50)
BITS = int(np.bitwise_count(np.bitwise_xor(*phash([decode(NEAR), decode(drawn(2))]))))


@pytest.mark.parametrize("tile", [1, 4, 8192])
def test_near_copies_are_found_with_their_distance_in_every_task(found, monkeypatch, tile):
    monkeypatch.setattr(leaks, "TILE", tile)
    rows = [row(n, image=image) for n, image in enumerate((drawn(77), NEAR, drawn(0), None))]
    rows.append(row(4, image=drawn(0)))
    (first, second), counts = found(rows[:2], [*rows[2:], row(5, image=b"no picture")])
    assert first == [(1, "shapes", "picture", "02", BITS)]
    assert second == [(n, of, "picture", "00", 0) for n in (0, 2) for of in ("shapes", "words")]
    assert counts["rows"] == 6
    assert counts["tasks"]["shapes"]["picture"] == {"samples": 4, "found": 2}
    assert counts["tasks"]["words"] == {
        "caption": {"samples": 3, "found": 0},
        "picture": {"samples": 2, "found": 1},
    }


@pytest.mark.parametrize(("beyond", "leaks"), [(0, 1), (1, 0)])
def test_max_distance_is_the_last_that_counts(found, beyond, leaks):
    (of_file,), _ = found([row(0, image=NEAR)], max_distance=BITS - beyond, max_turned=None)
    assert len(of_file) == leaks


def framed(png: bytes, degrees: float) -> bytes:
    """The picture turned, on a red border."""
    red = (40, 40, 200)
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    page = cv2.copyMakeBorder(bgr, *[16] * 4, cv2.BORDER_CONSTANT, value=red)
    turn = cv2.getRotationMatrix2D((40, 40), degrees, 1)
    return cv2.imencode(".png", cv2.warpAffine(page, turn, (80, 80), borderValue=red))[1].tobytes()


@pytest.mark.parametrize("max_turned", [None, 12])
def test_a_picture_behind_a_border_and_a_turn_is_found_with_its_plain_distance(found, max_turned):
    turned = framed(drawn(3), 8)
    apart = int(np.bitwise_count(np.bitwise_xor(*phash([decode(turned), decode(drawn(3))]))))
    rows = [
        row(n, image=image) for n, image in enumerate((drawn(78), turned, framed(drawn(79), 8)))
    ]
    (of_file,), counts = found(rows, max_turned=max_turned)
    assert of_file == ([(1, "shapes", "picture", "03", apart)] if max_turned else [])
    assert (apart > 16, counts["max_turned"]) == (True, max_turned)


@pytest.mark.parametrize(
    ("words", "leaks"),
    [
        (("a quiet HARBOUR",), [("words", "caption", "a quiet harbour")]),
        (("a quiet harbour at night", None), []),
        (("no such", " Boats\n", "boats"), [("words", "caption", "boats")]),
        (("a photo of a Red Circle.",), [("shapes", "prompt", "a photo of a red circle.")]),
        (("red circle",), []),
    ],
)
def test_texts_are_found_word_for_word(found, tasks, words, leaks):
    (tasks / "shapes" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (of_file,), _ = found([row(0, image=None, texts=texts(*words))])
    assert of_file == [(0, *leak, 0) for leak in leaks]


def test_under_a_mask_only_rows_that_it_keeps_are_looked_at(found):
    times = np.zeros(70, np.int32)
    times[[1, 66]] = 1, 3
    rows = [row(n, image=drawn(0) if n in (0, 66) else None) for n in range(70)]
    (of_file,), counts = found(rows, mask=SimpleNamespace(times=lambda file: times))
    assert {leak[:2] for leak in of_file} == {(66, "shapes"), (66, "words")}
    assert counts["rows"] == 2


def test_a_task_that_is_wrong_is_refused(found, tasks):
    (tasks / "shapes" / "test" / "0.tar").unlink()
    for refused in (lambda: found([row(0)]), EvaluationLeaks(tasks=str(tasks)).look):
        with pytest.raises(StageError, match=r"0\.tar is missing") as error:
            refused()
        assert f"key `tasks`: {tasks}/shapes/" in error.value.args[1]


def test_a_folder_without_tasks_is_named_at_plan(tmp_path):
    stage = EvaluationLeaks(tasks=str(tmp_path / "nowhere"))
    with pytest.raises(StageError, match="no such folder") as error:
        stage.look()
    assert error.value.args[1].startswith("key `tasks`: ")
