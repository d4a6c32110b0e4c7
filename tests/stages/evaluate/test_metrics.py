"""Metrics: known answers, and CLIP_benchmark's definitions written out by hand beside them."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from clipmill.metadata.evaluated import NEVER, Ranks
from clipmill.stages.evaluate import _metrics
from clipmill.stages.evaluate._bootstrap import best_answers, macro_f1
from clipmill.stages.evaluate._metrics import (
    association,
    best_ranks,
    classification,
    interval,
    retrieval,
)
from clipmill.stages.ops.vectors.matrices import unit_rows


def vectors(count: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, width)))


# What CLIP_benchmark's metric code computes, from its definitions, not from its text.


def benchmark_accuracy(score_NC, label_N, k):
    best = torch.from_numpy(score_NC).topk(k).indices.numpy()
    return np.mean([label in row for label, row in zip(label_N, best, strict=True)])


def balanced_accuracy(score_NC, label_N):
    predicted = score_NC.argmax(axis=1)
    return np.mean([np.mean(predicted[label_N == c] == c) for c in np.unique(label_N)])


def benchmark_recall(score_QA, positive_QA, k):
    """Share of queries with a positive among their k best answers."""
    best = torch.from_numpy(score_QA).topk(k).indices.numpy()
    return np.mean([positive_QA[q, best[q]].any() for q in range(len(score_QA))])


@pytest.mark.parametrize("classes", [5, 9])
def test_classification_is_clip_benchmarks(classes):
    image_ND, class_CD = vectors(200), vectors(classes, seed=1)
    label_N = np.random.default_rng(2).integers(0, classes - 1, 200) ** 2 % classes
    ranks = best_ranks(image_ND, class_CD, label_N, np.arange(classes))
    row_N, first_N = best_answers(image_ND, class_CD)
    score_NC = image_ND.astype(np.float64) @ class_CD.T.astype(np.float64)
    found = {name: m["value"] for name, m in classification(ranks, label_N, classes).items()}
    assert found == {
        "acc1": pytest.approx(benchmark_accuracy(score_NC, label_N, 1)),
        "acc5": pytest.approx(benchmark_accuracy(score_NC, label_N, 5)),
        "mean_per_class_recall": pytest.approx(balanced_accuracy(score_NC, label_N)),
    }
    np.testing.assert_array_equal(row_N, np.arange(200))
    np.testing.assert_array_equal(first_N, score_NC.argmax(axis=1))


def test_retrieval_is_clip_benchmarks_with_several_captions_an_image():
    image_ND, text_KD = vectors(40), vectors(97, seed=1)
    owner_K = np.sort(np.concatenate([np.arange(40), np.random.default_rng(3).integers(0, 40, 57)]))
    text_KD += 0.6 * image_ND[owner_K]  # somewhat better than chance
    text_KD = unit_rows(text_KD)
    text_ranks = best_ranks(image_ND, text_KD, np.arange(40), owner_K)
    image_ranks = best_ranks(text_KD, image_ND, owner_K, np.arange(40))
    count_N = np.bincount(owner_K, minlength=40)
    found = {name: m["value"] for name, m in retrieval(text_ranks, image_ranks, count_N).items()}
    score_KN = text_KD.astype(np.float64) @ image_ND.T.astype(np.float64)
    positive_KN = owner_K[:, None] == np.arange(40)
    both = found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]
    assert found.pop("mean_recall@1") == pytest.approx(both / 2)
    for k in (1, 5, 10):
        expected = benchmark_recall(score_KN, positive_KN, k)
        assert found.pop(f"image_retrieval_recall@{k}") == pytest.approx(expected)
        expected = benchmark_recall(score_KN.T, positive_KN.T, k)
        assert found.pop(f"text_retrieval_recall@{k}") == pytest.approx(expected)
    assert found == {}


def test_an_image_without_captions_is_a_miss_as_in_clip_benchmark():
    """There 0 of 0 positives is NaN, and NaN > 0 is no hit; k may be more than the captions."""
    image_ND, text_KD = vectors(12), vectors(9, seed=1)
    owner_K = np.array([0, 0, 1, 3, 4, 4, 7, 8, 9])
    text_ranks = best_ranks(image_ND, text_KD, np.arange(12), owner_K)
    image_ranks = best_ranks(text_KD, image_ND, owner_K, np.arange(12))
    count_N = np.bincount(owner_K, minlength=12)
    found = {name: m["value"] for name, m in retrieval(text_ranks, image_ranks, count_N).items()}
    score_NK = image_ND.astype(np.float64) @ text_KD.T.astype(np.float64)
    positive_NK = np.arange(12)[:, None] == owner_K
    for k in (1, 5):
        expected = benchmark_recall(score_NK, positive_NK, k)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(expected)
    assert found["text_retrieval_recall@10"] == pytest.approx(7 / 12)
    assert found["image_retrieval_recall@10"] > 0


def test_ranks_by_hand():
    """Query 0 beside its own answer; query 1 has two, the better of which comes second."""
    query = np.array([[1.0, 0], [0, 1]])
    answer = np.array([[1.0, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    ranks = best_ranks(query, answer, np.array([0, 1]), np.array([0, 1, 5, 1]))
    assert ranks.better_N.tolist() == [0, 1]
    assert [it.tolist() for it in best_answers(query, answer)] == [[0, 1], [0, 2]]


def test_a_tie_is_a_hit_as_often_as_in_any_order():
    """Of 2 right and 3 wrong that tie, after one that is better: orders tried one by one."""
    score = np.array([[1.0], [0.5], [0.5], [0.5], [0.5], [0.5], [0.1]])
    ranks = best_ranks(np.ones((1, 1)), score, np.array([1]), np.array([0, 1, 1, 2, 3, 4, 1]))
    assert (ranks.better_N, ranks.wrong_N, ranks.right_N) == (1, 3, 2)
    for k in range(1, 8):
        tried = [min(order[:2]) + 1 < k for order in permutations(range(5))]
        assert ranks.hits(k) == pytest.approx([np.mean(tried)])


@pytest.mark.parametrize("answers", [5, 7, 40])
def test_a_constant_model_scores_chance_in_every_metric(answers):
    """At 7 classes the answer that stands first took 5 of 7; GEMM's edges decide no tie."""
    same = unit_rows(np.random.default_rng(0).standard_normal((1, 33)))
    image_ND, answer_MD = same.repeat(210, axis=0), same.repeat(answers, axis=0)
    label_N = np.random.default_rng(1).integers(0, answers, 210)
    metrics = classification(
        best_ranks(image_ND, answer_MD, label_N, np.arange(answers)), label_N, answers
    )
    row_P, class_P = best_answers(image_ND, answer_MD)
    metrics["F1-macro_all"] = macro_f1(class_P, label_N, answers, row_P)
    owner_K = np.repeat(np.arange(answers), 3)
    texts, images = same.repeat(len(owner_K), axis=0), answer_MD
    ranks = [
        best_ranks(images, texts, np.arange(answers), owner_K),
        best_ranks(texts, images, owner_K, np.arange(answers)),
    ]
    metrics |= retrieval(*ranks, np.bincount(owner_K))
    right_N = np.arange(24) % 12 < 5
    metrics |= association(np.zeros(24, int), right_N, np.arange(24) // 12)
    told = {name: found for name, found in metrics.items() if found}
    assert len(told) >= 12
    for name, found in told.items():
        assert found["value"] == pytest.approx(found["chance"], rel=1e-9), name


def test_nan_is_a_miss_and_is_nobodys_gain():
    """Query 1 is NaN, and so is the answer of query 2; the others stand as before."""
    query, answer = np.eye(4), np.eye(4)
    query[1], answer[2] = np.nan, np.nan
    ranks = best_ranks(query, answer, np.arange(4), np.arange(4))
    assert ranks.hits(1).tolist() == [1, 0, 0, 1]
    assert ranks.hits(10**9).tolist() == [1, 0, 0, 1]
    row_P, answer_P = best_answers(query, answer)
    assert set(row_P.tolist()) == {0, 2, 3}
    assert answer_P[row_P != 2].tolist() == [0, 3]
    rank_N = np.array([0, NEVER, 1, 2, 3])
    found = association(rank_N, np.array([1, 1, 0, 0, 0], bool), np.zeros(5, int))
    assert found["avg_jaccard_score"]["value"] == pytest.approx(1 / 3)


def test_blocks_change_nothing(monkeypatch):
    query, answer = vectors(50), vectors(20, seed=1)
    groups = np.arange(50) % 20, np.arange(20)
    whole = best_ranks(query, answer, *groups)
    monkeypatch.setattr(_metrics, "SCORES", 61)
    parts = best_ranks(query, answer, *groups)
    np.testing.assert_array_equal(parts.better_N, whole.better_N)
    np.testing.assert_array_equal(parts.wrong_N, whole.wrong_N)


def test_accuracy_at_5_of_fewer_than_5_classes_is_null():
    assert classification(Ranks(np.array([0, 3])), np.array([0, 1]), 4)["acc5"] is None


def test_a_task_of_one_class_is_what_guessing_has():
    found = classification(Ranks(np.zeros(3, int)), np.zeros(3, int), 1)
    assert {(each["value"], each["chance"]) for each in found.values() if each} == {(1, 1)}


def test_recall_at_10_of_fewer_than_10_images_is_all():
    found = retrieval(Ranks(np.array([2, 1, 0])), Ranks(np.array([2, 2, 2])), np.ones(3, int))
    assert found["image_retrieval_recall@10"]["value"] == 1
    assert found["image_retrieval_recall@1"]["value"] == 0


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [(0.5, 100, 0.4038315, 0.5961685), (0.0, 10, 0.0, 0.2775328), (1.0, 10, 0.7224672, 1.0)],
)
def test_intervals_are_wilsons(share, trials, low, high):
    """The middle one is the textbook's; at 0 and 1 it is z² / (n + z²) wide."""
    found = interval(share, trials)
    assert found == {"value": share, "low": pytest.approx(low), "high": pytest.approx(high)}


def test_intervals_cover_what_they_say():
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.9):
        hits = rng.binomial(60, share, 4000)
        covered = [
            (found := interval(hit / 60, 60))["low"] <= share <= found["high"] for hit in hits
        ]
        assert 0.93 < np.mean(covered) < 0.975


def test_classes_of_few_images_widen_the_interval_of_the_mean_recall():
    label = np.array([0] * 90 + [1] * 10)
    rank = Ranks(np.arange(100) % 2)
    uneven = classification(rank, label, 2)["mean_per_class_recall"]
    even = classification(rank, np.arange(100) // 50, 2)["mean_per_class_recall"]
    expected = interval(0.5, 2**2 / (1 / 90 + 1 / 10))
    assert (uneven["low"], uneven["high"]) == (expected["low"], expected["high"])
    assert even == pytest.approx(interval(0.5, 100) | {"chance": 0.5})


def test_captions_of_one_image_are_one_trial():
    found = retrieval(Ranks(np.zeros(10, int)), Ranks(np.arange(50) % 2), np.full(10, 5))[
        "image_retrieval_recall@1"
    ]
    assert found["high"] == interval(0.5, 10)["high"]
    assert math.isclose(found["value"], 0.5)
