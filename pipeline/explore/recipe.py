"""Writes another threshold as a `--set` and as a recipe of its own."""

import copy
import dataclasses
import json
import shlex
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore import questions
from clipmill.pipeline.explore.columns import Columns
from clipmill.pipeline.explore.moved import threshold_at
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import load_recipe, override, value_of
from clipmill.pipeline.stage import Settles, Threshold

MOST_FILES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed:
    """The current recipe with one setting changed: its text, the equivalent `--set`, and the
    command that runs it."""

    setting: str
    text: str
    command: str


def changed(columns: Columns, moved: questions.Threshold) -> Changed:
    """Returns the recipe with the threshold moved; RecipeError if no setting or plan allows it."""
    state = columns.state
    planned, threshold = threshold_at(columns, moved)
    value = Decimal(repr(moved.value)).normalize()
    setting = f"{planned.name}.{_setting(planned, threshold, value)}"
    before = state.plan.recipe
    recipe = dataclasses.replace(before, stages=copy.deepcopy(before.stages), sets={})
    override(recipe, setting)
    make_plan(recipe)
    run, rule = (" ".join(text.split()) for text in (str(state.run), threshold.text))
    head = (
        f"# The recipe of {run}, but for '{planned.name}':\n"
        f"# {threshold.name} is put at {value:f}, where `{rule}` stood\n"
    )
    body = yaml.safe_dump(
        {"seed": recipe.seed, "stages": recipe.stages},
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    target = setting.partition("=")[0]
    others = [other for other in before.overrides if other.partition("=")[0] != target]
    sets = [word for each in (*others, setting) for word in ("--set", each)]
    command = shlex.join(["clipmill", "run", before.path, *sets, "--out", str(state.run)])
    return Changed(setting=setting, text=head + body, command=command)


def save(text: str, beside: Path) -> Path:
    """Writes the recipe to a new file beside a run: `run-2.yaml`, or the next number."""
    for number in range(2, MOST_FILES + 2):
        path = beside.with_name(f"{beside.stem}-{number}.yaml")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        load_recipe(str(path))  # checks that it can be read
        return path
    raise RecipeError(f"{MOST_FILES} recipes are there", str(beside.parent), "delete some")


def _setting(planned: PlannedStage, threshold: Threshold, value: Decimal) -> str:
    """Returns `KEY=VALUE` for the setting that holds the number."""
    if isinstance(planned.stage, Settles):
        key, text = planned.stage.settled(threshold, value)
        is_misread = isinstance(read := value_of(text, key), str) and read != text
        return f"{key}={json.dumps(text, ensure_ascii=False) if is_misread else text}"
    current: Any = planned.stage
    for key in threshold.name.split("."):
        current = getattr(current, key, None)
    if isinstance(current, int | float) and not isinstance(current, bool):
        return f"{threshold.name}={value:f}"
    raise RecipeError(
        f"'{threshold.name}' of '{planned.name}' is no setting by itself",
        planned.where,
        f"change the recipe by hand: {threshold.text}",
    )
