"""docs/troubleshooting.md has each reason that a stage may give, and none that no stage gives."""

import re
from functools import cache
from pathlib import Path

from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.stages.dedup.exact import READS
from tests.every_stage import RECIPE

STAGES = known_uses()  # with none of a test's own
PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
OF_A_RULE = re.compile(
    r"undefined:|top:|dropped_by:|kept_by:|.* "
)  # told in words: they hold the recipe's own columns


@cache
def described() -> dict[str, set[str]]:
    """The reasons of the tables below each heading, by the stages that it names."""
    found: dict[str, set[str]] = {}
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        cells = re.findall(r"^\| (`[^|]+) \|", body, re.MULTILINE)
        reasons = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
        found |= dict.fromkeys(re.findall(r"`([\w.]+)`", heading), reasons)
    return found


@cache
def declared() -> dict[str, set[str]]:
    """The reasons that stages of every_stage.yaml declare, whatever their settings."""
    plan = make_plan(load_recipe(str(RECIPE)))
    found: dict[str, set[str]] = {}
    for planned in plan.stages.values():
        of_stage = found.setdefault(planned.uses, set())
        of_stage |= {code for code in planned.stage.reasons if not OF_A_RULE.match(code)}
    exact = {code for by in READS for code in stage_class("dedup.exact", "")(by=by).reasons}
    found["dedup.exact"] |= exact | {"no_value"}
    return found


def test_every_reason_of_a_stage_has_an_entry():
    missing = {uses: declared()[uses] - described().get(uses, set()) for uses in STAGES}
    assert {uses: reasons for uses, reasons in missing.items() if reasons} == {}


def test_no_entry_is_of_a_reason_that_is_gone():
    reasons: set[str] = set().union(*declared().values())
    assert set().union(*described().values()) <= reasons
    assert described().keys() <= set(STAGES)
