"""Metrics of DataComp's other tasks: known answers, sklearn's, and what guessing gives."""

import numpy as np
import pytest
import torch

from clipmill.stages.evaluate._bootstrap import best_answers, f1_of_guesses, macro_f1
from clipmill.stages.evaluate._metrics import (
    any_of,
    association,
    best_ranks,
    classification,
    jaccard_of_guesses,
    least_share,
    retrieval,
    worst_group,
)
from clipmill.stages.evaluate._scoring import class_vectors
from clipmill.stages.evaluate.zero_shot import averages, is_whole
from clipmill.stages.ops.tasks.folders import TaskFolder
from clipmill.stages.ops.tasks.listed import listed, listed_tasks
from clipmill.stages.ops.vectors.matrices import unit_rows

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def sklearn():
    """Its metrics. Their import takes seconds: those of no test."""
    import sklearn.metrics

    return sklearn.metrics


def test_the_worst_group_by_hand():
    """Group 0 has 3 of 4, group 1 1 of 4, group 5 none: the last only where it is not ignored."""
    hit = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 5])
    worst = worst_group(hit, group, 0.1, ignored=(5,))
    assert (worst["value"], worst["group"]) == (0.25, 1)
    worst = worst_group(hit, group, 0.1)
    assert (worst["value"], worst["group"]) == (0, 5)


def test_a_task_whose_groups_are_all_ignored_has_no_worst():
    assert worst_group(np.ones(3, bool), np.full(3, 5), 0.1, ignored=(5,)) is None


def test_the_worst_group_by_brute_force():
    for _ in range(20):
        hit, group = RNG.random(60) < 0.4, RNG.integers(0, 5, 60)
        least = min(hit[group == g].mean() for g in set(group.tolist()))
        assert worst_group(hit, group, 0.1)["value"] == pytest.approx(least)


def test_macro_f1_is_sklearns_over_the_labels_that_occur(sklearn):
    """Class 6 is predicted and never true: it takes part in no mean, as in WILDS."""
    for _ in range(5):
        label, predicted = RNG.integers(0, 6, 80), RNG.integers(0, 7, 80)
        found = macro_f1(predicted, label, classes=9)
        labels = np.unique(label)
        only = {"average": "macro", "labels": labels, "zero_division": 0}
        expected = sklearn.f1_score(label, predicted, **only)
        assert found["value"] == pytest.approx(expected)
        assert found["low"] < found["value"] < found["high"]


def test_macro_f1_by_hand():
    """Class 0: 1 of 2 true, 1 of 1 guessed, so 2/3. Class 1: 1 of 1 true, 1 of 2 guessed: 2/3."""
    assert macro_f1(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)["value"] == pytest.approx(2 / 3)


def test_associations_are_scored_by_jaccard_of_each_instance(sklearn):
    """Three instances: 5 candidates with 2 right, 10 with 3, 12 with 5; ranks by chance."""
    ranks, rights, instances, expected = [], [], [], []
    for instance, (candidates, wanted) in enumerate(((5, 2), (10, 3), (12, 5))):
        rank, right = RNG.permutation(candidates), np.arange(candidates) < wanted
        expected.append(sklearn.jaccard_score(right, rank < wanted))
        ranks.append(rank)
        rights.append(right)
        instances.append(np.full(candidates, instance))
    found = association(*map(np.concatenate, (ranks, rights, instances)))
    assert found["avg_jaccard_score"]["value"] == pytest.approx(np.mean(expected))
    assert found["jaccard_score_10-12"]["value"] == pytest.approx(np.mean(expected[1:]))
    assert found["jaccard_score_5-6"]["value"] == pytest.approx(expected[0])


def test_associations_without_a_hard_instance_have_no_figure_for_them():
    found = association(np.arange(5), np.arange(5) < 2, np.zeros(5, int))
    assert found["jaccard_score_10-12"] is None
    assert found["avg_jaccard_score"]["value"] == 1


def test_guessing_is_worth_what_a_simulation_says():
    """20,000 draws each; the tolerance is five standard errors or more."""
    count = np.array([4, 30, 100])
    least = (RNG.binomial(count, 0.2, (20_000, 3)) / count).min(axis=1)
    assert least_share(0.2, count) == pytest.approx(least.mean(), abs=0.004)
    assert least_share(0.25, np.array([50])) == pytest.approx(0.25)
    assert least_share(1.0, count) == 1
    order = RNG.permuted(np.tile(np.arange(10), (20_000, 1)), axis=1)
    both = (order[:, :3] < 3).sum(axis=1)
    assert jaccard_of_guesses(10, 3) == pytest.approx((both / (6 - both)).mean(), abs=0.006)
    own = np.array([0, 1, 3])
    drawn = RNG.permuted(np.tile(np.arange(4), (20_000, 1)), axis=1)[:, :2]
    simulated = [0, (drawn < 1).any(axis=1).mean(), (drawn < 3).any(axis=1).mean()]
    assert any_of(own, 4, 2) == pytest.approx(simulated, abs=0.02)


def test_guessing_macro_f1_is_near_a_simulation(sklearn):
    label = np.repeat(np.arange(5), (40, 100, 5, 200, 55))
    drawn = RNG.integers(0, 6, (100, len(label)))
    labels = np.arange(5)
    simulated = [sklearn.f1_score(label, one, average="macro", labels=labels) for one in drawn]
    guessed = f1_of_guesses(np.bincount(label, minlength=6))
    assert guessed == pytest.approx(np.mean(simulated), rel=0.02)


def whole_results(value=0.5):
    """A result of each of the 38, as large as DataComp's."""
    metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.2}
    return {
        task.folder: {
            "listed": task.name,
            "metric": task.metric,
            "pictures": task.size,
            "instances": None,
            "metrics": {task.metric: metric},
        }
        for task in listed_tasks()
        if task.metric
    }


def test_averages_are_of_all_38_or_say_that_they_are_not():
    results = whole_results()
    results["vtab-dtd"]["metrics"] = {"acc1": {"value": 0.9, "low": 0.8, "high": 1, "chance": 0}}
    found = averages(results)
    assert list(found) == ["average", "vtab", "shifts", "retrieval"]
    assert found["average"]["value"] == pytest.approx(0.5 + 0.4 / 38)
    assert found["vtab"]["value"] == pytest.approx(0.5 + 0.4 / 13)
    sizes = [one["tasks"] for one in found.values()]
    assert (sizes, found["average"]["complete"]) == ([38, 13, 6, 3], True)
    del results["wilds-fmow"], results["winogavil"]
    found = averages(results)
    assert list(found) == [
        "partial_average_of_36",
        "vtab",
        "shifts",
        "partial_retrieval_of_2",
    ]
    assert found["partial_average_of_36"]["missing"] == ["WinoGAViL", "FMoW"]
    assert averages({}) == {}


def test_a_task_of_fewer_pictures_is_not_datacomps():
    results = whole_results()
    results["vtab-dtd"]["pictures"] = 20
    assert not is_whole(results["vtab-dtd"])
    assert averages(results)["partial_average_of_37"]["missing"] == ["Describable Textures"]


def test_the_interval_of_an_average_is_that_of_independent_tasks():
    found = averages(whole_results())["average"]
    assert found["high"] - found["value"] == pytest.approx(0.1 / 38**0.5)


def test_the_list_has_40_tasks_of_which_38_count():
    tasks = listed_tasks()
    assert (len(tasks), sum(task.metric is not None for task in tasks)) == (40, 38)
    assert {t.metric for t in tasks} == {
        *("acc1", "mean_per_class_recall", "mean_recall@1", "jaccard_score_10-12"),
        *("F1-macro_all", "acc_worst_region", "acc_top5_wg", "acc_wg", None),
    }


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("wds_vtab-dtd_test", "Describable Textures"),
        ("vtab-dtd", "Describable Textures"),
        ("wds_mscoco_captions", "MSCOCO"),
        ("retrieval", None),
        ("winogavil", "WinoGAViL"),
    ],
)
def test_a_folder_is_known_by_the_names_that_exports_give_it(folder, name):
    found = listed(folder)
    assert (found and found.name) == name


@pytest.mark.soak(cpu_s=8)  # importing it takes seconds
def test_recalls_are_those_of_clip_benchmarks_own_code():
    """30 pictures with 0 to 4 captions: its code makes 0 of 0 a NaN, which is no hit."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    count_N = RNG.integers(0, 5, 30)
    owner_K = np.repeat(np.arange(30), count_N)
    image_ND = unit_rows(RNG.standard_normal((30, 6)))
    text_KD = unit_rows(RNG.standard_normal((len(owner_K), 6)) + image_ND[owner_K])
    text_ranks = best_ranks(image_ND, text_KD, np.arange(30), owner_K)
    image_ranks = best_ranks(text_KD, image_ND, owner_K, np.arange(30))
    found = retrieval(text_ranks, image_ranks, count_N)
    score_KN = torch.from_numpy(text_KD @ image_ND.T)
    is_own_KN = torch.from_numpy(owner_K[:, None] == np.arange(30))
    for k in (1, 5, 10):
        for side, score, own in (
            ("image", score_KN, is_own_KN),
            ("text", score_KN.T, is_own_KN.T),
        ):
            recall = batchify(recall_at_k, score, own, 16, "cpu", k=k)
            expected = (recall > 0).double().mean().item()
            assert found[f"{side}_retrieval_recall@{k}"]["value"] == pytest.approx(expected)


def test_mean_recall_of_the_classes_is_sklearns(sklearn):
    image_ND, class_CD = (unit_rows(RNG.standard_normal((n, 6))) for n in (90, 7))
    label_N = RNG.integers(0, 7, 90)
    ranks = best_ranks(image_ND, class_CD, label_N, np.arange(7))
    _, first_N = best_answers(image_ND, class_CD)
    found = classification(ranks, label_N, 7)["mean_per_class_recall"]["value"]
    assert found == pytest.approx(sklearn.balanced_accuracy_score(label_N, first_N))


class Letters:
    """A text model: a vector of each text's letters."""

    width, sha256 = 26, None

    def embed_texts(self, texts):
        return unit_rows(np.stack([self.encode_text([text])[0].numpy() for text in texts]))

    def encode_text(self, texts):
        counts = [[text.count(chr(97 + n)) + n / 99 for n in range(26)] for text in texts]
        return torch.tensor(counts, dtype=torch.float32)


class Texts(list):
    def to(self, device):
        return self


@pytest.mark.soak(cpu_s=8)
def test_class_vectors_are_those_of_clip_benchmarks_own_code():
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    task = TaskFolder("it", "classification", ("cat", "red fox", "hen"), ("{c}", "a {c}, old"), ())
    theirs = zero_shot_classifier(
        Letters(), Texts, list(task.classnames), list(task.templates), "cpu", amp=False
    )
    np.testing.assert_allclose(class_vectors(task, Letters()), theirs.numpy().T, atol=1e-6)
