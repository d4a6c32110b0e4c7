"""Template: values of a column as sentences, by templates that a hash draws."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.uid import coin_hash, mixed
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Worker
from clipmill.stages.caption.template import Template

UID = pa.array([bytes([n]) * 16 for n in range(200)], pa.binary(16))
THREE = ("{}", "a photo of {}", "{}, or {}: 5 % of {{}}")


def made(values: pa.Array, **settings) -> dict:
    worker = Worker(seed=7, stage="named", device="cpu", threads=1, scratch=None)
    stage = Template(column="label", **settings)
    table = pa.table({"uid": UID[: len(values)], "label": values})
    return stage.open(worker)(table).to_pydict()


def test_each_value_is_put_into_its_templates_in_their_order():
    values = pa.array([["black_dog", None, " "], ["$1"], [], None, [""]])
    found = made(values, templates=THREE, each=3)
    assert [row and [it["text"] for it in row] for row in found["captions"]] == [
        ["black dog", "a photo of black dog", "black dog, or black dog: 5 % of {black dog}"],
        ["$1", "a photo of $1", "$1, or $1: 5 % of {$1}"],
        *(None, None, None),
    ]
    assert found["captions"][1][1] == {
        **{"text": "a photo of $1", "source": "named", "model": None},
        **{"prompt_id": "a photo of {}", "label": "template"},
    }
    assert found["captions_missing"] == [2, 0, None, None, None]
    assert found["reason"] == [None, None, "no_values", "no_values", "blank_values"]


def test_templates_are_drawn_by_a_coin_of_uid_place_and_template():
    bits_N = coin_hash(UID, seed=7, stage="named", purpose="template")
    coin_N6 = mixed(bits_N[:, None] + np.arange(6, dtype=np.uint64))
    expected = [
        [THREE[n] for coin in np.split(coins, 2) for n in sorted(np.argsort(coin)[:2])]
        for coins in coin_N6
    ]
    found = made(pa.array([["a", "b"]] * 200), templates=THREE, each=2)
    assert [[it["prompt_id"] for it in row] for row in found["captions"]] == expected
    firsts = [row[0]["prompt_id"] for row in made(pa.array(["a"] * 200))["captions"]]
    assert len({*firsts}) == 12  # of a string, one of any of the twelve


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"templates": ("a photo",)}, "the template 'a photo' has no {}"),
        (
            {"templates": ("{}", "{}"), "each": 2},
            "`each` is 2, and there are 1 different templates",
        ),
    ],
)
def test_templates_that_cannot_be_followed_are_refused(settings, found):
    with pytest.raises(RecipeError) as refused:
        Template(column="label", **settings)
    assert refused.value.args[0] == found


def test_a_column_of_other_values_is_refused():
    with pytest.raises(RecipeError, match="'label' is of type list<item: int32>"):
        Template(column="label").check({"label": pa.list_(pa.int32())})
