"""evaluate.zero_shot on tasks in DataComp's layouts: groups, Parquet, associations."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.proof.measured import terms
from clipmill.stages.evaluate import zero_shot
from clipmill.stages.evaluate.zero_shot import ZeroShot
from clipmill.stages.ops.tasks.check import check
from tests.stages.evaluate.test_zero_shot import Colours
from tests.stages.listed_folders import associated, captioned, grouped, paired


@pytest.fixture
def scored(memory_context, tmp_path, monkeypatch):
    """Results and context of a model that knows colours, on tasks in tmp_path/eval."""

    def make():
        monkeypatch.setattr(zero_shot, "load", lambda *_: Colours())
        ctx = memory_context()
        ZeroShot(model="reference", tasks=str(tmp_path / "eval")).run(Inputs(rows=[]), ctx)
        (found,) = json.loads((ctx.out / "results.json").read_text())["models"]
        return found, ctx.out

    return make


def right_but(wrong: set[int], count: int = 12) -> list[int]:
    """The class of each picture, another where the model is to be wrong."""
    return [(i + 1) % 5 if i in wrong else i % 5 for i in range(count)]


def test_fmow_is_the_worst_region_without_other(scored, tmp_path):
    """Regions 0 to 4 and 5, "Other"; region 2 has one of its two, and 5 none."""
    regions = [[r, 15, 0] for r in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)]
    grouped(tmp_path / "eval" / "wds_wilds-fmow_test", 62, regions, right_but({4, 10, 11}))
    found, out = scored()
    task = found["tasks"]["wds_wilds-fmow_test"]
    assert (task["listed"], task["metric"]) == ("FMoW", "acc_worst_region")
    worst = task["metrics"]["acc_worst_region"]
    assert (worst["value"], worst["group"]) == (0.5, 2)
    assert task["metrics"]["acc_worst_region_of_all"]["value"] == 0
    assert 0 < task["chance"] < 1 / 62
    assert pq.read_table(out / "wds_wilds-fmow_test.parquet")["group"].to_pylist() == [
        row[0] for row in regions
    ]
    assert found["averages"] == {}  # 12 pictures are not FMoW's 22,108


def test_geode_dollar_street_and_iwildcam_have_their_own_metrics(scored, tmp_path):
    groups = [[i % 3, 7] for i in range(12)]
    grouped(tmp_path / "eval" / "wds_geode_test", 40, groups, right_but({1, 4}))
    grouped(tmp_path / "eval" / "wds_dollar_street_test", 58, groups, right_but({1, 4}))
    grouped(tmp_path / "eval" / "wds_wilds-iwildcam_test", 182, groups, right_but({1, 4}))
    grouped(tmp_path / "eval" / "mine", 6, groups, right_but({1, 4}))
    tasks = scored()[0]["tasks"]
    metrics = {name: task["metric"] for name, task in tasks.items()}
    assert metrics == {
        "mine": "acc1",
        "wds_dollar_street_test": "acc_top5_wg",
        "wds_geode_test": "acc_wg",
        "wds_wilds-iwildcam_test": "F1-macro_all",
    }
    assert tasks["wds_geode_test"]["metrics"]["acc_wg"]["value"] == 0.5
    assert tasks["mine"]["metrics"]["acc_wg"]["value"] == 0.5
    assert tasks["mine"]["chance"] == pytest.approx(1 / 6)
    top5 = tasks["wds_dollar_street_test"]["metrics"]["acc_top5_wg"]
    assert top5["value"] == 0.75  # of the two that are wrong at 1, one is right at 5
    f1 = tasks["wds_wilds-iwildcam_test"]["metrics"]
    assert 0.7 < f1["F1-macro_all"]["value"] < 0.9
    assert "acc_wg" not in f1


def test_retrieval_in_parquet_is_the_mean_of_both_recalls(scored, tmp_path):
    captioned(tmp_path / "eval" / "flickr_1k_test_image_text_retrieval", 5)
    task = scored()[0]["tasks"]["flickr_1k_test_image_text_retrieval"]
    assert (task["metric"], task["pictures"], task["captions"]) == ("mean_recall@1", 5, 10)
    assert task["metrics"]["mean_recall@1"]["value"] == 1
    assert task["chance"] == pytest.approx(0.2)


def test_a_pair_is_right_if_both_of_its_texts_choose_their_picture(scored, tmp_path):
    """Of 3 pairs one is right, one half, and one shows the same twice: both of it tie."""
    rows = [(0, "red", "Texts"), (1, "green", "Texts"), (2, "blue", "Texts"), (3, "blue", "Texts")]
    paired(tmp_path / "eval" / "blind", [*rows, (4, "white", "Color"), (4, "white", "Color")])
    found, out = scored()
    task, metrics = found["tasks"]["blind"], found["tasks"]["blind"]["metrics"]
    assert (task["kind"], task["metric"], task["chance"]) == ("pairs", "pair_accuracy", 0.25)
    values = {name: metric["value"] for name, metric in metrics.items()}
    shares = {"pair_accuracy_Color": 1 / 4, "pair_accuracy_Texts": 1 / 2}
    assert values == pytest.approx({"pair_accuracy": 5 / 12} | shares)
    ranks = pq.read_table(out / "blind.parquet")
    assert ranks["rank"].to_pylist() == [0, 0, 0, 1, 0, 0]
    for name, metric in metrics.items():
        assert terms(name, metric, ranks) is not None  # arms are compared by it


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ([], "odd number"),
        ([(0, "", "Texts")], "0 captions"),
        ([(0, "red", "")], "pattern ''"),
    ],
)
def test_a_pair_that_is_none_is_refused(scored, tmp_path, more, found):
    paired(tmp_path / "eval" / "blind", [(0, "red", "Texts"), *more])
    with pytest.raises(StageError, match=found):
        scored()


def test_tasks_of_a_language_have_a_mean(scored, tmp_path):
    tasks = {"a.de": {0, 1, 2}, "b.de": set(), "b.zh-Hans": {4}, "b.val": {0}, "b.fil": {0}}
    for name, wrong in tasks.items():
        grouped(tmp_path / "eval" / name, 6, [[0]] * 12, right_but(wrong))
    averages = scored()[0]["averages"]
    assert {name: (a["value"], a["tasks"]) for name, a in averages.items()} == {
        "language_de": (pytest.approx((9 / 12 + 1) / 2), 2),
        "language_fil": (pytest.approx(11 / 12), 1),
        "language_zh-Hans": (pytest.approx(11 / 12), 1),
    }


def test_winogavil_counts_instances_of_ten_candidates_and_more(scored, tmp_path):
    """Cue 0 has two of ten right: red ones. Cue 1 wants a green one that the model cannot tell."""
    hard = list(range(10))
    instances = [("Red", hard, [0, 5]), ("blue", [0, 1, 2, 3, 4], [1]), ("blue", hard, [2, 4])]
    associated(tmp_path / "eval" / "winogavil", instances)
    found, out = scored()
    task = found["tasks"]["winogavil"]
    assert (task["kind"], task["instances"], task["pictures"]) == ("association", 3, 25)
    assert task["metrics"]["jaccard_score_10-12"]["value"] == pytest.approx((1 + 1 / 3) / 2)
    assert task["metrics"]["jaccard_score_5-6"]["value"] == 0
    ranks = pq.read_table(out / "winogavil.parquet")
    first = ranks.filter(ranks["instance"].to_numpy() == 0).to_pydict()
    of_right = [rank for rank, right in zip(first["rank"], first["is_right"], strict=True) if right]
    assert of_right == [0, 0]  # they tie


def test_tasks_without_a_rule_are_passed_over(scored, tmp_path):
    grouped(tmp_path / "eval" / "mine", 5, [[0]] * 5, right_but(set(), 5))
    grouped(tmp_path / "eval" / "wds_fairface_test", 5, [[0]] * 5, right_but(set(), 5))
    (tmp_path / "eval" / "hf_cache").mkdir()
    assert list(scored()[0]["tasks"]) == ["mine"]
    assert [f for f in check(str(tmp_path / "eval")) if f.is_fatal] == []


def test_a_listed_name_with_other_classes_is_a_task_of_its_own(scored, tmp_path):
    grouped(tmp_path / "eval" / "wds_geode_test", 5, [[0]] * 5, right_but(set(), 5))
    task = scored()[0]["tasks"]["wds_geode_test"]
    assert (task["listed"], task["metric"]) == (None, "acc1")
    (note,) = check(str(tmp_path / "eval"))
    assert (note.is_fatal, note.found) == (False, "5 classes, and DataComp's GeoDE has 40")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda row: row["associations"].clear(), "10 candidates, 10 pictures, 0 associations"),
        (lambda row: row.update(cue=5), "10 candidates, 10 pictures, 2 associations"),
        (lambda row: row["candidate_images"].pop(), "10 candidates, 9 pictures, 2 associations"),
        (lambda row: row["candidate_images"][3].update(bytes=b"x"), "a picture that is"),
    ],
)
def test_an_instance_that_is_not_whole_is_refused(scored, tmp_path, spoil, found):
    home = tmp_path / "eval" / "winogavil"
    associated(home, [("red", list(range(10)), [0, 5])])
    file = home / "test" / "0.parquet"
    (row,) = pq.read_table(file).to_pylist()
    spoil(row)
    pq.write_table(pa.Table.from_pylist([row]), file)
    with pytest.raises(StageError, match=found):
        scored()


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ({"image": ["a.png"], "caption": ["x"]}, r"not_an_image', where='it/test/1.parquet, row 0"),
        ({"image": [b""], "text": ["x"]}, r"cannot be read: .*caption"),
    ],
)
def test_a_later_shard_of_other_columns_is_a_finding(tmp_path, second, found):
    captioned(tmp_path / "it", 1)
    pq.write_table(pa.table(second), tmp_path / "it" / "test" / "1.parquet")
    assert re.search(found, str(check(str(tmp_path))))


def test_rows_of_each_file_of_associations_are_numbered_from_0(tmp_path):
    for name, shown in (("it", [0, 1]), ("more", [0])):
        associated(tmp_path / name, [("red", shown, [0])])
    (tmp_path / "more" / "test" / "0.parquet").rename(tmp_path / "it" / "test" / "1.parquet")
    assert "it/test/1.parquet, row 0" in str(check(str(tmp_path)))


@pytest.mark.parametrize("numbers", [[-1], [0.5], [float("inf")], ["north"]])
def test_a_group_that_is_no_number_from_0_up_is_refused(scored, tmp_path, numbers):
    grouped(tmp_path / "eval" / "wds_geode_test", 40, [numbers] * 5, right_but(set(), 5))
    with pytest.raises(StageError, match=r"KEY\.npy names no group"):
        scored()


def test_a_type_without_a_rule_is_refused(scored, tmp_path):
    grouped(tmp_path / "eval" / "mine", 5, [[0]] * 5, right_but(set(), 5))
    (tmp_path / "eval" / "mine" / "dataset_type.txt").write_text("segmentation")
    with pytest.raises(StageError, match="a segmentation task, which has no rule here"):
        scored()


def test_a_parquet_task_without_its_columns_is_refused(scored, tmp_path):
    captioned(tmp_path / "eval" / "mine", 2)
    file = tmp_path / "eval" / "mine" / "test" / "0.parquet"
    pq.write_table(pq.read_table(file, columns=["image"]), file)
    with pytest.raises(StageError, match="no column 'caption'"):
        scored()
