"""Plans: which column is meant, what a fingerprint depends on, which stages there are."""

import os
import sys

import pytest
import yaml

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_code import VARIABLE
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class

pytestmark = pytest.mark.usefixtures("own_stages")

STAGES = """
pool: {uses: ingest.url_list, path: a.csv, extra: {a: int64, b: int64}}
one:  {uses: probe.copy, from: pool, column: a, to: c}
two:  {uses: probe.copy, from: one, column: c, to: d}
side: {uses: probe.copy, from: pool, column: b, to: c}
keep: {uses: select.where, from: two, where: d > 3}
"""


def plan_of(text: str = "", until: str | None = None, **changed: object):
    """The plan of STAGES with these lines more, and `stage__key=value` changed."""
    stages = yaml.safe_load(STAGES + text)
    for target, value in changed.items():
        stage, _, key = target.partition("__")
        stages[stage][key] = value
    return make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages), until)


def prints(plan) -> dict[str, str]:
    return {name: planned.fingerprint for name, planned in plan.stages.items()}


def bound(line: str) -> dict[str, tuple[str, str]]:
    (binding,) = plan_of(f"it: {line}").stages["it"].bindings
    return binding


# Which column


def test_a_column_is_that_of_the_ancestor_which_writes_it():
    plan = plan_of()
    assert plan.stages["one"].bindings == ({"a": ("pool", "a")},)
    assert plan.stages["keep"].bindings == ({"d": ("two", "d")},)


def test_a_column_written_again_down_the_line_hides_the_earlier_one():
    again = "again: {uses: probe.copy, from: one, column: c, to: c}\n"
    plan = plan_of(again + "it: {uses: probe.copy, from: again, column: c, to: e}\n")
    assert plan.stages["again"].bindings == ({"c": ("one", "c")},)
    assert plan.stages["it"].bindings == ({"c": ("again", "c")},)


def test_two_that_do_not_stand_in_line_are_told_apart_by_name():
    assert bound("{uses: select.where, from: [one, side], where: one.c > side.c}") == {
        "one.c": ("one", "c"),
        "side.c": ("side", "c"),
    }
    with pytest.raises(RecipeError, match="two ancestors: 'one' and 'side'"):
        bound("{uses: select.where, from: [one, side], where: c > 1}")


def test_read_binds_one_column_for_a_stage():
    line = "{uses: probe.copy, from: [one, side], column: c, to: e, read: {c: side.c}}"
    assert bound(line) == {"c": ("side", "c")}


def test_a_reason_is_a_column_of_its_stage():
    line = "{uses: select.where, from: two, where: one.reason IS NULL}"
    assert bound(line) == {"one.reason": ("one", "reason")}


PICTURES = "pics: {uses: ingest.image_folder, path: pics}\n"


def test_a_derived_column_is_found_where_its_source_is():
    plan = plan_of(PICTURES + "it: {uses: annotate.phash, from: pics}")
    [binding] = plan.stages["it"].bindings
    assert binding == {"image": ("pics", "image"), "pixels": ("pics", "image")}


def test_a_derived_column_is_bound_to_a_column_of_the_type_of_its_source():
    line = PICTURES + "it: {uses: annotate.phash, from: pics, read: {pixels: pics.%s}}"
    assert plan_of(line % "image").stages["it"].bindings[0]["pixels"] == ("pics", "image")
    with pytest.raises(RecipeError, match="'image' is binary") as refused:
        plan_of(line % "url")
    assert "pics.url is string" in str(refused.value)


def test_a_dataset_stage_reads_no_derived_column(monkeypatch):
    exported = stage_class("export.uid_list", "it.yaml")
    monkeypatch.setattr(exported, "reads", stage_class("annotate.phash", "it.yaml").reads)
    with pytest.raises(RecipeError, match="'pixels' is derived, which a dataset stage cannot"):
        plan_of(PICTURES + "it: {uses: export.uid_list, from: pics}")


TYPES = """
datacomp: {uses: ingest.datacomp, path: pool, scores: true}
same: {uses: dedup.exact, from: datacomp}
words: {uses: annotate.language, from: datacomp}
texts: {uses: annotate.concepts, from: words, concepts: list.json}
"""


@pytest.mark.parametrize(
    "where",
    [
        f"uid = '{'0' * 32}'",
        f"uid IN ('{'0' * 32}', '{'f' * 32}')",
        "duplicate_of IS NULL AND same.reason IS NULL",
        "words.reason = 'no_text'",
        "l14_img IS NOT NULL AND (face_bboxes IS NULL OR concept_ids IS NOT NULL)",
        "text LIKE '%a%' AND clip_l14_similarity_score > 0.3",
    ],
)
def test_a_condition_on_columns_that_can_answer_it_is_planned(where):
    plan = plan_of(f"{TYPES}it: {{uses: select.where, from: [texts, same], where: {where!r}}}")
    assert plan.stages["it"].stage.where == where


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("face_bboxes = 1", "takes a list for one value: face_bboxes holds list"),
        ("l14_img > 0.5", "asks what is in l14_img, which holds fixed_size_list"),
        ("ABS(concept_ids) > 1", "takes a list for one value: concept_ids holds list"),
        ("text > 5", "`text > 5` compares text with a number"),
        ("uid > 5", "`uid > 5` compares text with a number"),
        ("duplicate_of", "no condition"),
        ("shard = 1", "no ancestor writes column 'shard'"),
        ("position = 1", "no ancestor writes column 'position'"),
        ("reason IS NULL", "no ancestor writes column 'reason'"),
    ],
)
def test_a_condition_that_columns_cannot_answer_is_refused_with_the_stage(where, found):
    with pytest.raises(RecipeError, match="'it'") as error:
        plan_of(f"{TYPES}it: {{uses: select.where, from: [texts, same], where: {where!r}}}")
    assert found in error.value.args[0]


@pytest.mark.parametrize("column", ["uid", "text", "face_bboxes", "duplicate_of"])
def test_a_top_of_what_has_no_order_is_refused_by_the_plan(column):
    top = f"{{column: {column}, rows: 1}}"
    with pytest.raises(RecipeError, match=f"column '{column}' holds"):
        plan_of(f"{TYPES}it: {{uses: select.where, from: [texts, same], top: {top}}}")


def test_an_optional_column_is_bound_where_there_is_one():
    assert "keep" not in bound("{uses: select.where, from: two, where: d > 5}")
    assert bound("{uses: select.where, from: keep, where: d > 5}")["keep"] == ("keep", "keep")


@pytest.mark.parametrize(
    "line",
    [
        "{uses: export.uid_list, from: keep",
        "{uses: train.clip, data: uids, rows: keep",
    ],
)
def test_an_optional_column_that_a_recipe_names_must_be_there(line):
    for read, found in (("keep.repeat", "'keep' writes no"), ("repeat", "no ancestor writes")):
        with pytest.raises(RecipeError, match=f"{found} .*'?repeat'"):
            plan_of(f"{SHARDS}it: {line}, read: {{repeats: {read}}}}}")


def test_pixels_are_decoded_from_the_image():
    plan = plan_of(
        "images: {uses: download.images, from: pool}\nlook: {uses: annotate.image, from: images}\n"
    )
    assert plan.stages["look"].bindings == (
        {"image": ("images", "image"), "pixels": ("images", "image")},
    )


def test_rows_know_their_root_and_a_union_is_a_new_one():
    plan = plan_of(
        "more: {uses: ingest.url_list, path: b.csv}\n"
        "both: {uses: ingest.union, from: [pool, more]}\n"
        "lang: {uses: annotate.language, from: both}\n"
    )
    roots = {name: planned.root for name, planned in plan.stages.items()}
    assert roots["two"] == roots["pool"] == "pool"
    assert roots["lang"] == roots["both"] == "both"
    assert [group["text"] for group in plan.stages["both"].bindings] == [
        ("pool", "text"),
        ("more", "text"),
    ]


def test_a_column_before_a_union_is_of_other_rows():
    both = (
        "pictures: {uses: ingest.image_folder, path: b}\n"
        "first: {uses: select.where, from: pictures, where: text IS NOT NULL}\n"
        "both: {uses: ingest.union, from: [pool, pictures]}\n"
        "last: {uses: select.where, from: both, where: "
    )
    (bound,) = plan_of(both + "url IS NOT NULL}\n").stages["last"].bindings
    assert bound == {"url": ("both", "url")}, "no image_bytes of one of the pools"
    for column, found in (("a", "no ancestor writes column 'a'"), ("pool.a", "has other rows")):
        with pytest.raises(RecipeError, match=found):
            plan_of(f"{both}{column} > 3}}\n")
    with pytest.raises(RecipeError, match="writes column 'language'") as error:
        plan_of(
            "more: {uses: ingest.url_list, path: b.csv}\n"
            "both: {uses: ingest.union, from: [pool, more]}\n"
            "lang: {uses: annotate.language, from: both}\n"
            "last: {uses: select.where, from: pool, where: language = 'en'}\n"
        )
    assert "let a stage come before it" in error.value.args[2], "lang has other rows"
    with pytest.raises(RecipeError, match="a union before 'last' takes along what 'first' dropped"):
        plan_of(both.replace("[pool, pictures]", "[pool, first]") + "url IS NOT NULL}\n")


def test_a_filter_network_reads_the_rows_of_several_roots_one_after_another():
    plan = plan_of(
        "own: {uses: ingest.image_folder, path: a}\n"
        "more: {uses: ingest.image_folder, path: b}\n"
        "seen: {uses: embed.features, from: own}\n"
        "known: {uses: embed.features, from: more}\n"
        "both: {uses: train.filter_network, from: [known, seen]}\n"
        "alone: {uses: train.filter_network, from: [own, seen]}\n"
    )
    both, alone = plan.stages["both"], plan.stages["alone"]
    assert (both.root, alone.root) == ("", "own")
    read = [group["image_features"] for group in both.bindings]
    assert read == [("known", "image_features"), ("seen", "image_features")]
    assert both.sources == ("known", "more", "own", "seen")
    assert len(alone.bindings) == 1  # of one root their columns are joined


# Order


def test_stages_stand_after_what_they_need_whatever_the_recipes_order():
    stages = dict(reversed(yaml.safe_load(STAGES).items()))
    order = list(make_plan(Recipe(name="it", path="", seed=0, stages=stages)).stages)
    assert order.index("pool") < order.index("one") < order.index("two") < order.index("keep")
    assert sorted(order) == sorted(stages)


def test_until_visits_each_stage_once_however_many_ways_lead_to_it():
    lines = ["a0: {uses: annotate.language, from: pool}", "a1: {uses: annotate.language, from: a0}"]
    lines += [
        f"a{n}: {{uses: annotate.language, from: [a{n - 1}, a{n - 2}]}}" for n in range(2, 60)
    ]
    text = "".join(f"{line}\n" for line in lines)
    assert len(plan_of(text, until="a59").stages) == 61


def test_until_keeps_a_stage_and_what_it_needs():
    text = "late: {uses: probe.copy, from: pool, column: a, to: e, only: keep}\n"
    assert list(plan_of(text, until="two").stages) == ["pool", "one", "two"]
    assert set(plan_of(text, until="late").stages) == {"pool", "one", "two", "keep", "late"}
    with pytest.raises(RecipeError, match="did you mean 'keep'"):
        plan_of(text, until="kepp")


# Fingerprints


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"one__unlucky": 5}, {"one", "two", "keep"}),
        ({"two__unlucky": 5}, {"two", "keep"}),
        ({"keep__where": "d > 4"}, {"keep"}),
        ({"pool__shard_rows": 5}, {"pool", "one", "two", "side", "keep"}),
        ({"one__unlucky": 1_000_000}, set()),  # the default, written out
        ({"pool__path": "b.csv"}, set()),  # a location
        ({"two__from": ["one", "side"], "two__read": {"c": "one.c"}}, set()),  # as before
        ({"two__from": ["one", "side"], "two__read": {"c": "side.c"}}, {"two", "keep"}),
    ],
)
def test_a_fingerprint_changes_with_settings_and_parents_and_nothing_else(change, moved):
    before, now = prints(plan_of()), prints(plan_of(**change))
    assert {name for name in before if before[name] != now[name]} == moved


def test_a_fingerprint_does_not_know_its_mask_and_knows_its_version(monkeypatch):
    only = {"side__only": "keep"}
    assert prints(plan_of(**only)) == prints(plan_of())
    before = prints(plan_of())
    monkeypatch.setattr(stage_class("select.where", ""), "version", 99)
    now = prints(plan_of())
    assert {name for name in before if before[name] != now[name]} == {"keep"}


def test_a_stage_that_another_trains_enters_by_its_fingerprint():
    text = "learn: {uses: probe.learn, from: pool, rounds: ROUNDS}\n" + (
        'apply: {uses: probe.apply, from: pool, model: "stage:learn"}\n'
    )
    one, other = (plan_of(text.replace("ROUNDS", str(rounds))) for rounds in (1, 2))
    assert one.stages["apply"].model == "learn"
    assert one.stages["apply"].needs == ("pool", "learn")
    assert one.stages["apply"].fingerprint != other.stages["apply"].fingerprint
    with pytest.raises(RecipeError, match="'pool' gives rows, and `model` takes model"):
        plan_of(text.replace("stage:learn", "stage:pool").replace("ROUNDS", "1"))


SHARDS = "uids: {uses: export.uid_list, from: pool}\n"
CLIP = "clip: {uses: train.clip, data: uids, rows: keep}\n"


def test_read_is_refused_where_nothing_is_bound_and_chooses_the_repeats_of_a_mask():
    with pytest.raises(RecipeError, match="'pool' has no `from`"):
        plan_of(pool__read={"text": "one.text"})
    lists = "".join(f"{n}: {{uses: select.uid_list, from: two, path: l}}\n" for n in "xy")
    both = "both: {uses: select.combine, from: [x, y], where: x AND y}\n"
    clip = CLIP.replace("rows: keep", "rows: both, read: {%s: x.repeats}")
    mask = plan_of(lists + both + SHARDS + clip % "repeats").stages["clip"].mask
    assert mask["repeats"] == ("x", "repeats")
    with pytest.raises(RecipeError, match="`read` is"):
        plan_of(lists + both + SHARDS + clip % "text")


def test_the_select_that_chooses_the_rows_of_data_is_a_parent():
    plain, masked = plan_of(SHARDS + CLIP.replace(", rows: keep", "")), plan_of(SHARDS + CLIP)
    clip = masked.stages["clip"]
    assert (clip.data, clip.kept_by, clip.needs) == ("uids", "keep", ("keep", "uids"))
    assert plain.stages["clip"].fingerprint != clip.fingerprint
    changed = plan_of(SHARDS + CLIP, keep__where="d > 4")
    assert {name for name in prints(masked) if prints(masked)[name] != prints(changed)[name]} == {
        *("keep", "clip")
    }
    assert "keep" in plan_of(SHARDS + CLIP, until="clip").stages
    assert masked.read_of("keep") == {"keep"}


def test_how_often_a_row_counts_is_read_where_the_select_would_read_it():
    text = "listed: {uses: select.uid_list, from: pool, path: a.txt}\n" + (
        "few: {uses: select.where, from: [listed, two], where: d > 3}\n"
    )
    for select, bound in (("listed", "listed"), ("few", "listed")):
        clip = plan_of(text + SHARDS + CLIP.replace("keep", select)).stages["clip"]
        assert clip.mask == {"keep": (select, "keep"), "repeats": (bound, "repeats")}


def test_the_setting_rows_of_a_select_is_no_edge():
    text = "lang: {uses: annotate.language, from: pool}\n" + (
        "words: {uses: annotate.concepts, from: lang, concepts: list.json}\n"
        "even: {uses: select.balance, from: words, concepts: list.json, rows: 5}\n"
    )
    assert plan_of(text).stages["even"].stage.rows == 5


# Stages


def test_known_stages_are_listed_once_a_users_own_included():
    assert len(set(known_uses())) == len(known_uses())
    assert {"probe.copy", "select.where"} <= set(known_uses())
    assert not [uses for uses in known_uses() if uses.startswith(("ops.", "models.", "export._"))]


BAD_STAGES = {
    "syntax": ("def f(:\n", "SyntaxError"),
    "raises": ("1 / 0\n", "ZeroDivisionError"),
    "package": ("import no_such_package\n", "needs the package 'no_such_package'"),
    "none": ("x = 1\n", "0 stage classes"),
    "plain": (
        "from clipmill.pipeline.stage import RowStage\n"
        "class It(RowStage):\n    version, determinism = 1, 'exact'\n",
        "@dataclass(frozen=True, kw_only=True)",
    ),
    "one word": (
        "from dataclasses import dataclass\nfrom clipmill.pipeline.stage import RowStage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass It(RowStage):\n    gives = 'model'\n",
        "write a tuple, even of one: gives = (…,)",
    ),
    "one column": (
        "from dataclasses import dataclass\nfrom clipmill.metadata.schema import TEXT\n"
        "from clipmill.pipeline.stage import RowStage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass It(RowStage):\n    reads = (TEXT)\n",
        "reads = the column 'text'",
    ),
    **{
        name: (
            "from dataclasses import dataclass\nfrom clipmill.pipeline.stage import RowStage\n"
            f"@dataclass(frozen=True, kw_only=True)\nclass It(RowStage):\n    {line}\n",
            said,
        )
        for name, line, said in (
            ("column by name", "writes = ('mine',)", "has writes = ('mine',)"),
            ("no reads", "reads = None", "has reads = None"),
            ("unknown type", "path: 'Path' = None", "name 'Path' is not defined"),
            (
                "two lists",
                "a: tuple[int, ...] | list[int] = ()",
                "a setting of no type: Type unions",
            ),
        )
    },
    "determinism": (
        "from dataclasses import dataclass\nfrom clipmill.pipeline.stage import DatasetStage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass It(DatasetStage):\n"
        "    version, determinism = 1, 'exakt'\n    def run(self, inputs, ctx): ...\n",
        "has determinism = 'exakt'",
    ),
    "undeclared": (
        "from dataclasses import dataclass\nfrom clipmill.pipeline.stage import RowStage\n"
        "@dataclass(frozen=True, kw_only=True)\nclass It(RowStage):\n    version = 1\n",
        "declares no determinism and no open",
    ),
}


@pytest.mark.parametrize("name", BAD_STAGES)
def test_a_stage_file_that_cannot_be_used_says_why(name, tmp_path, monkeypatch):
    text, said = BAD_STAGES[name]
    file = tmp_path / "stages" / "bad" / f"{name}.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "stages"))
    with pytest.raises(RecipeError) as error:
        stage_class(f"bad.{name}", "it.yaml:3")
    sys.modules.pop(f"clipmill_own.bad.{name}", None)
    assert said in str(error.value)
    assert "it.yaml:3" in str(error.value)


FEW = """
from dataclasses import dataclass
from clipmill.metadata.schema import KEEP, UID
from clipmill.pipeline.stage import DatasetStage

@dataclass(frozen=True, kw_only=True)
class Few(DatasetStage):
    version, determinism, writes = 1, "exact", (KEEP,)
    def run(self, inputs, ctx): ...
"""


def test_a_select_that_would_keep_what_an_earlier_one_dropped_is_refused(tmp_path, monkeypatch):
    (tmp_path / "select").mkdir()
    (tmp_path / "select" / "few.py").write_text(FEW)
    seeing = FEW.replace("(KEEP,)", "(KEEP,)\n    optional_reads = (KEEP,)")
    (tmp_path / "select" / "seeing.py").write_text(seeing)
    by_row = FEW.replace("Dataset", "Row").replace("run(self, inputs, ctx)", "open(self, worker)")
    (tmp_path / "select" / "by_row.py").write_text(by_row)
    monkeypatch.setenv(VARIABLE, f"{os.environ[VARIABLE]}{os.pathsep}{tmp_path}")
    line = "it: {{uses: select.few, from: {}}}\n".format
    with pytest.raises(RecipeError) as raised:
        plan_of(line("keep"))
    said = str(raised.value)
    assert "'it' reads no `keep`, so rows that 'keep' dropped would be kept again" in said
    assert "stage 'it', key 'uses'" in said
    assert "write `optional_reads = (KEEP,)` into its class" in said
    assert plan_of(line("two")).stages["it"].bindings == ({},)  # no select before it
    assert plan_of(line("keep, only: keep").replace("few", "by_row"))  # given those that are kept
    seen = plan_of(line("keep").replace("few", "seeing"))
    assert seen.stages["it"].bindings == ({"keep": ("keep", "keep")},)


def test_a_card_is_told_the_stages_before_with_the_settings_of_the_recipe():
    ids = "ids: {uses: export.uid_list, from: keep}"
    (pool, one, two, keep) = plan_of(ids).steps_to("ids")
    assert pool == {
        "stage": "pool",
        "uses": "ingest.url_list",
        "settings": {"extra": {"a": "int64", "b": "int64"}},
    }, "a path on this machine means nothing elsewhere, nor does a default"
    assert (one["stage"], two["stage"]) == ("one", "two"), "and not `side`, which it does not need"
    assert keep["settings"] == {"where": "d > 3"}
    there = plan_of(ids, pool__path="s3://KEY:SECRET@bucket/a.csv").steps_to("ids")[0]
    assert there["settings"]["path"] == "s3://bucket/a.csv"
