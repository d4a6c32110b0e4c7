"""Mutated pictures through every stage that looks at them; `python -m tests.mutated_pictures` does
more of them."""

from itertools import islice

import pytest

from clipmill.metadata.schema import REASON
from clipmill.stages.download.images import DownloadImages
from tests.hostile_pictures import noise, saved
from tests.mutated_pictures import STAGES, mutants, opened, through

GOOD = saved(noise(), "png")
COUNT = 160


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each stage says of mutants, each with a good neighbour, and of that alone."""
    functions = [opened(stage, tmp_path_factory.mktemp("scratch")) for stage in STAGES]
    bodies = [body for mutant in islice(mutants(0), COUNT) for body in (mutant, GOOD)]
    return through(bodies, functions), through([GOOD], functions)


def test_each_neighbour_is_as_it_is_alone(said):
    together, alone = said
    for rows, [good] in zip(together, alone, strict=True):
        assert len(rows) == 2 * COUNT
        assert all(row == good for row in rows[1::2])


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_each_mutant_has_its_values_or_null_and_a_declared_reason(stage, said):
    rows = said[0][STAGES.index(stage)][::2]
    names = [column.name for column in stage.writes if not column.name.startswith("text")]
    for row in rows:
        is_null = [row[name] is None for name in names]
        assert all(is_null) if row[REASON.name] else not any(is_null)
        assert row[REASON.name] in (None, *stage.reasons)
    assert {row[REASON.name] is None for row in rows} == {True, False}


def test_each_mutant_is_stored_small_and_upright_or_has_a_declared_reason(said):
    rows = said[0][len(STAGES)][::2]
    for row in rows:
        assert (row["image"] is None) == (row[REASON.name] is not None)
        assert row[REASON.name] in (None, *DownloadImages.reasons)
    assert {(row["width"], row["height"]) for row in rows if row["image"]} == {(16, 16)}
