"""Which texts an export leaves with: chosen ones, one caption stage's, or those that it names."""

import pytest
import yaml

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe

pytestmark = pytest.mark.usefixtures("own_stages")

STAGES = """
pool:  {uses: ingest.image_folder, path: pictures}
stars: {uses: probe.says, from: pool}
moons: {uses: probe.says, from: pool, said: ["moon *"]}
look:  {uses: annotate.image, from: pool}
"""


def lists(line: str, more: str = "") -> dict[str, str]:
    """The columns of captions that an export reads, as `name: stage.column`."""
    stages = yaml.safe_load(f"{STAGES}{more}\nit: {{uses: export.parquet, {line}}}")
    plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
    (bound,) = plan.stages["it"].bindings
    return {name: ".".join(at) for name, at in bound.items() if at[1] in ("captions", "texts")}


def test_one_caption_stage_needs_no_name():
    assert lists("from: stars") == {"captions": "stars.captions"}
    assert lists("from: pool") == {}
    assert lists("from: stars, captions: false") == {}


def test_two_caption_stages_side_by_side_have_to_be_named():
    with pytest.raises(RecipeError) as error:
        lists("from: [stars, moons]")
    assert "column 'captions' comes from two ancestors: 'moons' and 'stars'" in str(error.value)
    assert "captions: [moons.captions, stars.captions]" in str(error.value)
    named = "from: [stars, moons], captions: [moons.captions, stars.captions]"
    assert list(lists(named)) == ["moons.captions", "stars.captions"]
    bound = "from: [stars, moons], read: {captions: moons.captions}"
    assert lists(bound) == {"captions": "moons.captions"}


def test_chosen_texts_are_read_in_the_place_of_lists_that_stand_side_by_side():
    judged = "uses: probe.judged, from: [stars, moons], captions: [stars.captions, moons.captions]"
    more = f"best: {{{judged}}}"
    assert lists("from: best", more) == {"texts": "best.texts"}
    named = "from: best, captions: [moons.captions]"
    assert lists(named, more) == {"moons.captions": "moons.captions"}
    bound = "from: best, read: {captions: stars.captions}"
    assert lists(bound, more) == {"captions": "stars.captions"}


def test_a_named_column_that_is_no_list_of_captions_is_refused():
    with pytest.raises(RecipeError, match=r"'look\.frames' holds int32, and no list of captions"):
        lists("from: [stars, look], captions: [look.frames]")


def test_made_texts_do_not_pass_for_the_pools_own():
    with pytest.raises(RecipeError, match="'original' would pass for the pool's own"):
        lists("from: original", "original: {uses: probe.says, from: pool}")
    assert lists("from: original", "original: {uses: annotate.image, from: pool}") == {}
