"""Metrics read off ranks again, equal to what the evaluation stored; which are told, and chance."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.evaluated import Ranks
from clipmill.metadata.storage import Storage
from clipmill.pipeline.ledger.proof.measured import main_metrics, mean_of, measured, redrawn, terms
from clipmill.pipeline.ledger.proof.trials import Task, Trial
from clipmill.stages.evaluate._bootstrap import macro_f1
from clipmill.stages.evaluate._metrics import (
    NEVER,
    association,
    best_ranks,
    classification,
    retrieval,
    worst_group,
)
from clipmill.stages.evaluate._scoring import stored as stored_ranks


def told(stored, table) -> set[str]:
    """The metrics that the ranks tell; each has the stored value."""
    found = {name: terms(name, value, table) for name, value in stored.items() if value}
    for name, of in found.items():
        assert of is None or of.value == pytest.approx(stored[name]["value"], abs=1e-12)
    return {name for name, of in found.items() if of}


def test_ranks_tell_the_metrics_of_a_classification():
    rng = np.random.default_rng(0)
    rank_N, label_N = rng.integers(0, 14, 200), rng.integers(0, 13, 200) ** 2 % 14
    guess_N = np.where(rank_N == 0, label_N, (label_N + 1) % 14)
    group_N = rng.integers(0, 4, 200)
    stored = classification(Ranks(rank_N), label_N, 14)
    stored |= {
        "F1-macro_all": macro_f1(guess_N, label_N, 14),
        "acc_wg": worst_group(rank_N < 1, group_N, 1 / 14),
        "acc_top5_wg": worst_group(rank_N < 5, group_N, 5 / 14, ignored=(0,)),
    }
    table = {"rank": rank_N, "label": label_N, "predicted": guess_N, "group": group_N}
    assert told(stored, pa.table(table)) == {
        *("acc1", "acc5", "mean_per_class_recall", "F1-macro_all", "acc_wg", "acc_top5_wg")
    }


def test_ranks_tell_the_metrics_of_a_retrieval():
    rng = np.random.default_rng(0)
    captions_N = rng.integers(0, 4, 60)
    text_rank_N = np.where(captions_N > 0, rng.integers(0, 20, 60), NEVER)
    image_rank_K = rng.integers(0, 20, captions_N.sum())
    ends = np.cumsum([0, *captions_N], dtype=np.int32)
    text_rank = pa.array(text_rank_N, mask=text_rank_N == NEVER)
    image_ranks = pa.ListArray.from_arrays(ends, image_rank_K)
    table = pa.table({"text_rank": text_rank, "image_ranks": image_ranks})
    stored = retrieval(Ranks(text_rank_N), Ranks(image_rank_K), captions_N)
    assert told(stored, table) == set(stored)


def test_ranks_tell_the_metrics_where_answers_tie():
    """5 texts of which some are the same words: in each metric the chance of a hit counts."""
    text_KD = np.eye(5)[[0, 0, 1, 2, 2, 2]]
    image_ND, owner_K = np.eye(5)[[0, 1, 2]], np.array([0, 1, 1, 2, 2, 0])
    count_N = np.bincount(owner_K)
    text_ranks = best_ranks(image_ND, text_KD, np.arange(3), owner_K)
    image_ranks = best_ranks(text_KD, image_ND, owner_K, np.arange(3))
    columns, ends = stored_ranks("text_rank", text_ranks), np.cumsum([0, *count_N], dtype=np.int32)
    assert [*columns] == ["text_rank", "text_rank_tied", "text_rank_tied_right"]
    for name, values in stored_ranks("image_ranks", image_ranks).items():
        columns[name] = pa.ListArray.from_arrays(ends, values)
    metrics = retrieval(text_ranks, image_ranks, count_N)
    assert 0 < metrics["text_retrieval_recall@1"]["value"] < 1
    assert told(metrics, pa.table(columns)) == set(metrics)


def test_ranks_tell_the_metrics_of_an_association():
    rng = np.random.default_rng(0)
    instance_N = np.repeat(np.arange(20), np.tile([5, 11], 10))
    rank_N = np.concatenate([rng.permutation(n) for n in np.tile([5, 11], 10)])
    right_N = np.concatenate([np.arange(n) < 2 for n in np.tile([5, 11], 10)])
    stored = association(rank_N, right_N, instance_N)
    table = pa.table({"instance": instance_N, "is_right": right_N, "rank": rank_N})
    assert told(stored, table) == set(stored)


def test_draws_spread_as_the_items_do():
    rng = np.random.default_rng(0)
    rank_N, label_N = rng.integers(0, 3, 400), rng.integers(0, 20, 400)
    guess_N = np.where(rank_N == 0, label_N, 0)
    table = pa.table({"rank": rank_N, "label": label_N, "predicted": guess_N})
    stored = classification(Ranks(rank_N), label_N, 20)
    share = stored["acc1"]["value"]
    for metric in ("acc1", "mean_per_class_recall"):
        of = terms(metric, stored[metric], table)
        (draw_D,) = redrawn([of], key=1)
        assert draw_D.mean() == pytest.approx(of.value, abs=0.01)
        assert draw_D.std() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.1)
    f1 = macro_f1(guess_N, label_N, 20)
    (draw_D,) = redrawn([terms("F1-macro_all", f1, table)], key=1)
    assert draw_D.std() == pytest.approx(0.0256, rel=0.1)  # of 2,000 draws of 400 by a generator


def test_models_with_terms_of_their_own_have_the_same_draws():
    rng = np.random.default_rng(0)
    table = pa.table({"rank": rng.integers(0, 3, 50), "group": rng.integers(0, 2, 50)})
    hit_N = table["rank"].to_numpy() < 1
    stored = {"value": hit_N[table["group"].to_numpy() == 1].mean(), "group": 1}
    one = terms("acc_wg", stored, table)
    every = terms("acc1", {"value": hit_N.mean()}, table)
    both = redrawn([one, every], key=2)
    assert (both == np.concatenate([redrawn([one], key=2), redrawn([every], key=2)])).all()


def test_what_ranks_do_not_tell_has_no_draws():
    table = pa.table({"rank": [0, 3]})
    assert terms("acc1", {"value": 0.5}, table) is not None
    assert terms("acc1", {"value": 0.4}, table) is None  # of other pictures
    assert terms("F1-macro_all", {"value": 0.5}, table) is None
    assert terms("new_metric", {"value": 0.5}, table) is None
    assert terms("acc1", {"value": 0.5}, pa.table({"text_rank": [0]})) is None


def task(kind="classification", classes=20, digest="0", main=None, content="", **metrics) -> Task:
    return Task(
        digest=digest,
        content=content,
        kind=kind,
        main=main,
        classes=classes,
        pictures=2,
        metrics={name: {"value": value, "chance": 0.02} for name, value in metrics.items()},
        folder=Storage("none"),
        ranks="none.parquet",
    )


def trial(seed=0, **tasks) -> Trial:
    return Trial(seed=seed, tasks=tasks, epochs=None)


def test_top_5_of_12_classes_or_fewer_is_not_told():
    found = measured([trial(few=task(classes=12, acc1=0.3, acc5=0.9), many=task(acc1=0, acc5=0.2))])
    assert [one.key for one in found] == [("few", "acc1"), ("many", "acc1"), ("many", "acc5")]
    assert [one.is_fine for one in found] == [False, True, True]
    assert [one.key for one in main_metrics(found)] == [("few", "acc1"), ("many", "acc5")]


def test_the_headline_is_the_mean_of_each_models_fine_tasks():
    both = [trial(s, a=task(acc5=s / 10), b=task(acc5=0.5 + s / 10)) for s in range(3)]
    found = mean_of(main_metrics(measured(both)))
    assert found.value_S == pytest.approx([0.25, 0.35, 0.45])
    assert found.chance == pytest.approx(0.02)


def test_tasks_of_one_name_with_other_pictures_are_two():
    found = measured([trial(a=task(digest="1", acc1=0.3)), trial(a=task(digest="2", acc1=0.4))])
    assert [(one.task, one.models) for one in found] == [("a (1)", (0,)), ("a (2)", (1,))]


def test_a_second_folder_of_the_same_files_does_not_count_twice_in_the_headline():
    tasks = {name: task(content="same", acc5=0.3) for name in ("a", "copy")}
    found = measured([trial(**tasks, other=task(content="more", acc5=0.4))])
    assert [one.is_fine for one in found] == [True, False, True]


def test_the_metric_that_the_rules_name_tells_a_task():
    found = measured([trial(a=task(main="macro_f1", acc5=0.9, macro_f1=0.3))])
    assert [one.key for one in main_metrics(found)] == [("a", "macro_f1")]


def test_a_task_whose_metrics_are_all_unknown_is_told_by_its_first():
    assert [one.key for one in main_metrics(measured([trial(a=task(new=0.9))]))] == [("a", "new")]
