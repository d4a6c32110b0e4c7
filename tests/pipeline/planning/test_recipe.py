"""Recipes as read from YAML: values, lines, overrides. What a wrong one gets: test_bad_recipes."""

from pathlib import Path

import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.recipe import RECIPES, find_recipe, load_recipe, recipe_in, value_of

TEXT = """\
# Two stages.
seed: 7
stages:
  pool: {uses: ingest.url_list, path: a.csv}
  images:
    uses: download.images
    from: pool
    resize: no
    timeout_s: 1e1
    disallowed_header_directives: [noai, on, 12:30]
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def test_a_recipe_has_its_stages_in_order_and_its_seed(mine):
    recipe = load_recipe(str(mine))
    assert (recipe.name, recipe.seed, list(recipe.stages)) == ("mine", 7, ["pool", "images"])
    assert recipe.stages["pool"] == {"uses": "ingest.url_list", "path": "a.csv"}


def test_scalars_are_those_of_yaml_1_2(mine):
    images = load_recipe(str(mine)).stages["images"]
    assert images["resize"] == "no"
    assert images["timeout_s"] == 10.0
    assert images["disallowed_header_directives"] == ["noai", "on", "12:30"]
    assert value_of("=", "here") == "="


@pytest.mark.parametrize(
    ("end", "line", "found"),
    [
        ("\n\n# \a", 4, "special characters are not allowed"),
        ("\n---\nb: 1", 3, "expected a single document in the stream, but found another document"),
    ],
)
def test_what_is_no_yaml_is_named_whole_and_at_its_line(end, line, found):
    with pytest.raises(RecipeError) as error:
        recipe_in(f"seed: 1\nstages: {{}}{end}".encode(), Path("mine.yaml"))
    assert error.value.args[:2] == (f"not YAML: {found}", f"mine.yaml:{line}")


def test_the_seed_is_0_where_none_is_given(mine):
    mine.write_text(TEXT.replace("seed: 7\n", ""))
    assert load_recipe(str(mine)).seed == 0


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ((), ":5, stage 'images'"),
        (("resize",), ":8, stage 'images', key 'resize'"),
        (("resize", "inner"), ":8, stage 'images', key 'resize.inner'"),
        (("unknown",), ":5, stage 'images', key 'unknown'"),
    ],
)
def test_a_key_is_placed_at_its_line_or_at_what_holds_it(keys, place, mine):
    assert load_recipe(str(mine)).where("images", *keys) == f"{mine}{place}"


@pytest.mark.parametrize(
    ("override", "stage", "key", "value"),
    [
        ("pool.path=b.csv", "pool", "path", "b.csv"),
        ("pool.path=a=b", "pool", "path", "a=b"),
        ("pool.shard_rows=5", "pool", "shard_rows", 5),
        ("pool.extra={width: int64}", "pool", "extra", {"width": "int64"}),
        ("pool.extra.width=int64", "pool", "extra", {"width": "int64"}),
        ("images.resize=no", "images", "resize", "no"),
        ("images.max_aspect_ratio=null", "images", "max_aspect_ratio", None),
        ("images.allow_private_addresses=true", "images", "allow_private_addresses", True),
    ],
)
def test_set_puts_one_yaml_value(override, stage, key, value, mine):
    assert load_recipe(str(mine), [override]).stages[stage][key] == value


def test_later_overrides_win_and_inner_keys_add_up(mine):
    sets = ["pool.extra.a=int8", "pool.extra.b=string", "pool.path=x", "pool.path=y", "seed=3"]
    recipe = load_recipe(str(mine), sets)
    assert recipe.stages["pool"]["extra"] == {"a": "int8", "b": "string"}
    assert recipe.stages["pool"]["path"] == "y"
    assert recipe.seed == 3


def test_our_recipes_are_found_by_name_and_say_what_they_are():
    for file in RECIPES.glob("*.yaml"):
        assert find_recipe(file.stem) == file
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        said = {line[2:].partition(":")[0].strip() for line in head}
        assert {"Source", "Run", "Expects", "Measured"} <= said, file


def test_a_stages_name_that_names_no_folder_is_refused(mine):
    for letters in (100, 101, 300):
        mine.write_text(f"stages: {{{'n' * letters}: {{uses: ingest.url_list, path: a.csv}}}}")
        if letters == 100:
            assert [*load_recipe(str(mine)).stages] == ["n" * 100]
            continue
        with pytest.raises(RecipeError, match=f"name of {letters} characters") as error:
            load_recipe(str(mine))
        assert error.value.args[1:] == (f"{mine}:1", "use 100 at most: it names a folder")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("./a.csv", "b/a.csv"),
        ("../a.csv", "a.csv"),
        ("a.csv", "a.csv"),
        ("s3://a/b", "s3://a/b"),
        (".", "b"),
    ],
)
def test_a_path_that_begins_with_a_dot_begins_at_the_recipes_folder(
    place, found, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.yaml").write_text(TEXT.replace("a.csv", place))
    assert load_recipe("b/mine.yaml").stages["pool"]["path"] == found
    whole = load_recipe(str(tmp_path / "b" / "mine.yaml")).stages["pool"]["path"]
    assert whole == (str(tmp_path / found) if place.startswith(".") else place)
    assert load_recipe("b/mine.yaml", ["pool.path=./c"]).stages["pool"]["path"] == "./c"


@pytest.mark.parametrize(
    ("text", "number"),
    [("010", 10), ("-012", -12), ("0", 0), ("0x1f", 31), ("+08", 8), ("1_000", 1000)],
)
def test_a_number_with_a_zero_in_front_is_no_octal(text, number):
    assert value_of(text, "here") == number
    assert isinstance(value_of(text, "here"), int)


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1__0", "0x_"])
def test_a_number_that_would_be_read_as_another_is_refused(text):
    with pytest.raises(RecipeError, match=r"as a number|cannot read the value"):
        value_of(text, "here")
