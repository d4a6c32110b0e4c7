"""Mean average precision: known answers, CLIP_benchmark's code, brute force over orders of ties."""

import io
import json
from itertools import pairwise, permutations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.evaluate import zero_shot
from clipmill.stages.evaluate._bootstrap import average_precisions, mean_average_precision
from clipmill.stages.evaluate.zero_shot import ZeroShot
from clipmill.stages.ops.tasks.check import check
from clipmill.stages.ops.vectors.matrices import unit_rows
from tests.stages.evaluate.test_zero_shot import Colours
from tests.stages.task_folders import NAMES, picture, write_tar


def drawn(pictures=120, classes=7, width=6, seed=0):
    """Vectors of pictures and classes, and flags of which the last class has none."""
    rng = np.random.default_rng(seed)
    picture_ND, class_CD = (unit_rows(rng.standard_normal((n, width))) for n in (pictures, classes))
    flag_NC = rng.random((pictures, classes)) < 0.2
    flag_NC[:, -1] = False
    return picture_ND, class_CD, flag_NC


def test_it_is_clip_benchmarks_own_without_ties():
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class

    for seed in range(4):
        picture_ND, class_CD, flag_NC = drawn(seed=seed)
        metric, *_ = mean_average_precision(picture_ND, class_CD, *np.nonzero(flag_NC))
        scores = torch.from_numpy(picture_ND @ class_CD.T)
        theirs = average_precision_per_class(scores, torch.from_numpy(flag_NC)).mean().item()
        assert metric["value"] == pytest.approx(theirs, abs=1e-6)  # theirs is float32
        assert metric["low"] < metric["value"] < metric["high"]


def test_by_hand():
    """Right ones at places 1 and 3 of 4: (1 + 2 / 3) / 2. Places 2 and 3 tie, and one is right."""
    class_P, alone = np.array([0, 0]), np.array([1, 1])
    assert average_precisions(class_P, np.array([0, 2]), alone, 1)[0] == pytest.approx(5 / 6)
    tied = average_precisions(class_P, np.array([0, 1]), np.array([1, 2]), 1)[0]
    assert tied == pytest.approx((1 + (2 / 2 + 2 / 3) / 2) / 2)


def test_of_ties_it_is_the_mean_over_all_their_orders():
    rng = np.random.default_rng(1)
    for _ in range(20):
        score_N, right_N = rng.integers(0, 3, 6), rng.random(6) < 0.5
        right_N[0] = True
        values = []
        for order in permutations(range(6)):
            if all(score_N[a] >= score_N[b] for a, b in pairwise(order)):
                hits = right_N[list(order)]
                values.append(np.mean((np.cumsum(hits) / np.arange(1, 7))[hits]))
        rank_P = np.array([(score_N > score).sum() for score in score_N[right_N]])
        tied_P = np.array([(score_N == score).sum() for score in score_N[right_N]])
        found = average_precisions(np.zeros(len(rank_P), int), rank_P, tied_P, 1)[0]
        assert found == pytest.approx(np.mean(values))


def test_a_model_that_says_the_same_of_all_is_scored_as_guessing():
    _, class_CD, flag_NC = drawn()
    metric, *_ = mean_average_precision(np.ones((120, 6)), class_CD, *np.nonzero(flag_NC))
    assert metric["value"] == pytest.approx(metric["chance"])
    assert metric["chance"] > flag_NC.mean() * 0.9


def test_a_picture_without_a_vector_is_found_last_and_moves_no_other():
    picture_ND, class_CD, flag_NC = drawn()
    lacking_ND = np.concatenate([picture_ND, np.full((1, 6), np.nan)])
    whole, rank_P, _ = mean_average_precision(picture_ND, class_CD, *np.nonzero(flag_NC))
    flag_NC = np.concatenate([flag_NC, np.zeros((1, 7), bool)])
    same, rank_of_P, _ = mean_average_precision(lacking_ND, class_CD, *np.nonzero(flag_NC))
    assert same["value"] == pytest.approx(whole["value"])
    np.testing.assert_array_equal(rank_of_P, rank_P)
    flag_NC[-1, 0] = True
    less, *_ = mean_average_precision(lacking_ND, class_CD, *np.nonzero(flag_NC))
    count = flag_NC[:, 0].sum()
    first = average_precisions(np.nonzero(flag_NC[:-1])[1], rank_P, np.ones_like(rank_P), 7)[0]
    assert whole["value"] - less["value"] == pytest.approx(first / count / 7)


def array(*numbers) -> bytes:
    held = io.BytesIO()
    np.save(held, np.array(numbers))
    return held.getvalue()


@pytest.fixture
def several(tasks):
    """The task `colours`, with a number a class in the place of a class's number."""
    folder = tasks / "colours"
    (folder / "dataset_type.txt").write_text("multilabel\n")

    def write(**changed: bytes) -> None:
        members = {f"{key:02d}.png": picture(key) for key in range(20)}
        flags = {
            f"{key:02d}.npy": array(*(int(key % 5 == c) for c in range(5))) for key in range(20)
        }
        members |= flags | {name.replace("_", "."): data for name, data in changed.items()}
        write_tar(folder / "test" / "0.tar", dict(sorted(members.items())))
        (folder / "test" / "nshards.txt").write_text("1\n")

    write()
    return write


def test_a_task_with_a_number_a_class_is_scored_by_it(several, tasks, memory_context, monkeypatch):
    monkeypatch.setattr(zero_shot, "load", lambda *_: Colours())
    ctx = memory_context()
    ZeroShot(model="reference", tasks=str(tasks)).run(Inputs(rows=[]), ctx)
    (results,) = json.loads((ctx.out / "results.json").read_text())["models"]
    colours = results["tasks"]["colours"]
    assert (colours["kind"], colours["metric"]) == ("multilabel", "mean_average_precision")
    assert colours["metrics"]["mean_average_precision"]["value"] == 1
    assert 0.2 < colours["chance"] < 0.4
    stored = pq.read_table(ctx.out / "colours.parquet").to_pydict()
    assert stored["labels"] == [[i % 5] for i in range(20)]
    assert stored["ranks"] == [[0]] * 20
    assert stored["ranks_tied"] == [[3]] * 20  # four pictures of each colour


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (array(1, 0), "2 numbers in KEY.npy, and classnames.txt names 5 classes"),
        (array(1, 0, 2, 0, 0), "KEY.npy names no classes"),
        (b"nothing", "KEY.npy names no classes"),
    ],
)
def test_flags_that_are_none_are_named(several, tasks, memory_context, data, found):
    several(**{"03_npy": data})
    assert [it.found for it in check(str(tasks)) if it.is_fatal] == [found]
    with pytest.raises(StageError, match=found.split(",")[0]):
        ZeroShot(model="reference", tasks=str(tasks)).run(Inputs(rows=[]), memory_context())


def test_a_class_that_no_picture_has_is_a_note(several, tasks):
    several(**{f"{key:02d}_npy": array(1, 0, 0, 0, 0) for key in range(20)})
    notes = [it.found for it in check(str(tasks)) if "classes have no picture" in it.found]
    assert notes == [f"4 of 5 classes have no picture: {NAMES[1]!r}"]
