"""Another recipe of the folder: the rows gained and lost against it are those of `diff`."""

import pytest

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.session import Session
from clipmill.pipeline.ledger.selection.diff import diff
from clipmill.pipeline.ledger.selection.sides import side_of
from tests.pipeline.explore.conftest import Asker


def of(folder, variant: int | None = None) -> Asker:
    return Asker(Session(str(folder / "run"), folder / "run.yaml", variant))


def test_rows_gained_and_lost_are_those_of_diff(several):
    ask = of(several)
    told = {one["variant"]: one["changes"] for one in ask("run")["variants"]}
    assert set(told) == {1, 2}
    assert told[1] == ["last.where = e <> 11 AND b < 15"]
    answer = ask("query", end="last", variant=1)
    known = diff(side_of("1", str(several / "run")), side_of("3", str(several / "run")))
    counted = {name: answer["against"][name] for name in ("both", "gained", "lost")}
    assert counted == {"both": known.both, "gained": known.gained, "lost": known.lost}
    gained, lost = (answer["parts"][name]["page"] for name in ("gained", "lost"))
    assert [row + 1 for row in gained] == [11, 17]
    assert [row + 1 for row in lost] == [9]
    assert answer["against"]["then"] == of(several, 1)("query", end="last")["causes"][0]["rows"]


def test_a_variant_of_other_rows_or_a_number_that_is_none_is_refused(several):
    ask = of(several)
    with pytest.raises(RecipeError, match="variant 2 has other rows"):
        ask("query", end="last", variant=2)
    with pytest.raises(RecipeError, match="no variant 9"):
        ask("query", end="last", variant=9)
