"""Metrics read off ranks again, equal to what the evaluation stored; which are told, and chance."""

import numpy as np
import pyarrow as pa
import pytest

from metadata.stats import Estimate
from metadata.storage import Storage
from pipeline.ledger.items import Terms, redrawn, terms
from pipeline.ledger.measured import chance, mean_of, measured, telling
from pipeline.ledger.trials import Task, Trial
from stages.evaluate._metrics import NEVER, classification, retrieval


def ratio(found: Terms) -> float:
    """The metric itself: each item once."""
    ends = [*found.starts_G[1:], len(found.hit_K)]
    groups = [found.hit_K[a:b].mean() for a, b in zip(found.starts_G, ends, strict=True)]
    return float(np.mean(groups))


def test_terms_give_the_metrics_of_a_classification():
    rng = np.random.default_rng(0)
    rank_N, label_N = rng.integers(0, 14, 200), rng.integers(0, 13, 200) ** 2 % 14
    stored = classification(rank_N, label_N, 14)
    table = pa.table({"rank": rank_N, "label": label_N})
    for metric, known in stored.items():
        assert ratio(terms(metric, table)) == pytest.approx(known["value"], abs=1e-12)


def test_terms_give_the_metrics_of_a_retrieval():
    rng = np.random.default_rng(0)
    captions_N = rng.integers(0, 4, 60)
    text_rank_N = np.where(captions_N > 0, rng.integers(0, 20, 60), NEVER)
    image_rank_K = rng.integers(0, 20, captions_N.sum())
    ends = np.cumsum([0, *captions_N], dtype=np.int32)
    table = pa.table(
        {
            "text_rank": pa.array(text_rank_N, mask=text_rank_N == NEVER),
            "image_ranks": pa.ListArray.from_arrays(ends, image_rank_K),
        }
    )
    for metric, known in retrieval(text_rank_N, image_rank_K).items():
        assert ratio(terms(metric, table)) == pytest.approx(known["value"], abs=1e-12)


def test_draws_spread_as_the_items_do():
    rng = np.random.default_rng(0)
    table = pa.table({"rank": rng.integers(0, 3, 400), "label": rng.integers(0, 20, 400)})
    for metric in ("acc1", "mean_per_class_recall"):
        (draw_D,) = redrawn([terms(metric, table)], 400, key=1)
        share = ratio(terms("acc1", table))
        assert draw_D.mean() == pytest.approx(ratio(terms(metric, table)), abs=0.01)
        assert draw_D.std() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.1)


def test_a_metric_that_ranks_do_not_tell_has_no_draws():
    assert terms("macro_f1", pa.table({"rank": [0], "label": [0]})) is None
    assert terms("acc1", pa.table({"text_rank": [0]})) is None


def task(kind="classification", classes=20, digest="0", main=None, given=None, **metrics) -> Task:
    return Task(
        digest=digest,
        kind=kind,
        main=main,
        chance=given,
        pictures=50,
        classes=classes,
        captions=100,
        metrics={name: Estimate(value) for name, value in metrics.items()},
        folder=Storage("none"),
        ranks="none.parquet",
    )


def trial(seed=0, **tasks) -> Trial:
    return Trial(seed=seed, tasks=tasks, epochs=None)


def test_top_5_of_12_classes_or_fewer_is_not_told():
    found = measured([trial(few=task(classes=12, acc1=0.3, acc5=0.9), many=task(acc1=0, acc5=0.2))])
    assert [one.key for one in found] == [("few", "acc1"), ("many", "acc1"), ("many", "acc5")]
    assert [one.is_fine for one in found] == [False, True, True]
    assert [one.key for one in telling(found)] == [("few", "acc1"), ("many", "acc5")]


def test_the_headline_is_the_mean_of_each_models_fine_tasks():
    both = [trial(s, a=task(acc5=s / 10), b=task(acc5=0.5 + s / 10)) for s in range(3)]
    found = mean_of(telling(measured(both)))
    assert found.value_S == pytest.approx([0.25, 0.35, 0.45])
    assert found.chance == pytest.approx(0.25)  # 5 of 20 classes


def test_tasks_of_one_name_with_other_pictures_are_two():
    found = measured([trial(a=task(digest="1", acc1=0.3)), trial(a=task(digest="2", acc1=0.4))])
    assert [(one.task, one.models) for one in found] == [("a (1)", (0,)), ("a (2)", (1,))]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("acc1", 0.05),
        ("acc5", 0.25),
        ("mean_per_class_recall", 0.05),
        ("image_retrieval_recall@5", 0.1),
        ("text_retrieval_recall@1", 0.02),
        ("text_retrieval_recall@5", 1 - 95 * 94 / (100 * 99)),
        ("macro_f1", None),
    ],
)
def test_chance_is_what_guessing_gives(metric, value):
    assert chance(metric, task()) == (value and pytest.approx(value))


def test_the_chance_that_the_rules_name_is_taken():
    (found,) = measured([trial(a=task(main="macro_f1", given=0.04, macro_f1=0.3))])
    assert found.chance == 0.04
