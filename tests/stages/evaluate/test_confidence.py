"""evaluate.confidence: scikit-learn's AUROC and FPR95, ECE by hand, and what it refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.evaluate import zero_shot
from clipmill.stages.evaluate.confidence import Confidence, calibration_error, separated
from clipmill.stages.evaluate.zero_shot import ZeroShot
from clipmill.stages.ops.vectors.matrices import from_matrix, unit_rows
from tests.stages.evaluate.test_zero_shot import Colours

CLASS_CD = unit_rows(np.eye(4, 6))


def logits(confidence: float) -> np.ndarray:
    """A picture's logits of two classes with this largest softmax, of class 0."""
    return np.log([[confidence, 1 - confidence]])


def test_calibration_error_of_four_pictures():
    """Of 15 bins one has .70 and .71, one right: |1.41 - 1|; others .95, right, and .55, wrong."""
    logit_NC = np.concatenate([logits(share) for share in (0.7, 0.71, 0.95, 0.55)])
    found = calibration_error(logit_NC, np.array([0, 1, 0, 1]))
    assert found == pytest.approx((0.41 + 0.05 + 0.55) / 4, abs=1e-12)


def test_a_constant_model_is_calibrated():
    assert calibration_error(np.zeros((40, 5)), np.arange(40) % 5) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def sklearn():
    """Its metrics. Their import takes seconds: those of no test."""
    import sklearn.metrics

    return sklearn.metrics


def test_pairs_are_told_as_scikit_learn_tells_them(sklearn):
    rng = np.random.default_rng(0)
    own_NC = np.round(rng.normal(0, 1, (130, 4)), 1)  # some tie
    other_NC = np.round(rng.normal(0, 0.6, (90, 4)), 1)
    every = np.concatenate([own_NC, other_NC])
    score = (np.exp(every) / np.exp(every).sum(1, keepdims=True)).max(1).round(12)
    is_own = np.arange(220) < 130
    found = separated(own_NC, other_NC)
    assert found["auroc"]["value"] == pytest.approx(sklearn.roc_auc_score(is_own, score), abs=1e-6)
    false, true, _ = sklearn.roc_curve(is_own, score, drop_intermediate=False)
    assert found["fpr95"]["value"] == pytest.approx(false[true >= 0.95][0], abs=1e-9)
    assert separated(own_NC, other_NC[:0]) is None


@pytest.fixture
def judged(memory_context, tmp_path):
    """Results of the stage over two tasks of one model: vectors, labels, the model's scale."""

    def run(scale=20.0, without=None, class_CD=CLASS_CD, **settings):
        rng = np.random.default_rng(1)
        (tmp_path / "out").mkdir(exist_ok=True)
        for name, noise in {"near": 0.3, "far": 9.0}.items():
            label_N = np.arange(60) % 4
            image_ND = unit_rows(CLASS_CD[label_N] + rng.normal(0, noise, (60, 6)))
            image_ND[7] = np.nan
            own = {"label": label_N, "embedding": from_matrix(image_ND)}
            scales = pa.array([scale] * 4, pa.float64())
            classes = {"embedding": from_matrix(class_CD), "scale": scales}
            for suffix, columns in {"": own, ".classes": classes}.items():
                path = tmp_path / "out" / f"seed-3.{name}{suffix}.parquet"
                pq.write_table(pa.table(columns).drop_columns(without or []), path)
        tasks = {name: {"kind": "classification"} for name in ("near", "far")}
        tasks["words"] = {"kind": "retrieval"}
        model = {"card": "out/seed-3.model.json", "model": "abc", "seed": 3, "tasks": tasks}
        (tmp_path / "out" / "results.json").write_text(json.dumps({"models": [model]}))
        ctx = memory_context()
        Confidence(**settings).run(Inputs(rows=[], data=str(tmp_path)), ctx)
        return json.loads((ctx.out / "confidence.json").read_text())

    return run


def test_each_task_has_its_error_and_each_pair_its_figures(judged):
    found = judged(pairs={"near": ("far",)})
    (model,) = found["models"]
    near, far = model["tasks"]["near"], model["tasks"]["far"]
    assert (model["seed"], near["pictures"], near["scale"], far["pairs"]) == (3, 59, 20.0, {})
    assert near["ece"] < 0.2 < 0.4 < far["ece"]  # noise is as sure of itself
    assert near["pairs"]["far"]["auroc"]["value"] > 0.7
    assert found["notes"][0] == f"near: ECE {near['ece']:.3f}"
    assert found["notes"][1].startswith("near beside far: AUROC 0.")
    assert judged(scale=None)["models"][0]["tasks"]["near"]["scale"] == 100


def test_a_model_without_a_vector_of_any_class_has_no_figures(judged):
    found = judged(pairs={"near": ("far",)}, class_CD=np.full((4, 6), np.nan))
    near = found["models"][0]["tasks"]["near"]
    assert (near["pictures"], near["ece"], near["pairs"]) == (0, None, {"far": None})


def test_it_reads_what_zero_shot_stores(memory_context, tasks, monkeypatch):
    monkeypatch.setattr(zero_shot, "load", lambda *_: Colours())
    first, second = memory_context(), memory_context()
    ZeroShot(model="reference", tasks=str(tasks), embeddings=True).run(Inputs(rows=[]), first)
    Confidence(pairs={"colours": ("colours",)}).run(
        Inputs(rows=[], data=str(first.out.parent)), second
    )
    found = json.loads((second.out / "confidence.json").read_text())
    colours = found["models"][0]["tasks"]["colours"]
    assert colours["pairs"]["colours"]["auroc"]["value"] == 0.5
    assert colours["ece"] < 0.01  # all are right, by far


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pairs": {"near": ("words",)}}, "no classification task 'words'"),
        ({"pairs": {"naer": ("far",)}}, "no classification task 'naer'"),
        ({"without": ["embedding"]}, r"near\.classes\.parquet without embeddings"),
    ],
)
def test_what_it_cannot_compare_is_refused(judged, asked, message):
    with pytest.raises(StageError, match=message):
        judged(**asked)
