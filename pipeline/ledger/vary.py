"""What `--vary` asks for: a threshold by its name, and the numbers to put in its place."""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.remembered import StandIn
from clipmill.pipeline.planning.selects import thresholds_of
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.stage import Selects, Threshold

FORM = re.compile(
    r"\s*([A-Za-z_][\w-]*(?:\.\w+)?)\s*(<=|>=|<|>|=)\s*([^:\s]+):([^:\s]+):([^:\s]+)\s*"
)
MAX_VALUES = 1000


@dataclass(frozen=True)
class Vary:
    """What is varied, `=` or the sign that tells one comparison from another, and the values."""

    name: str
    sign: str
    values: tuple[Decimal, ...]


def parse(vary: str) -> Vary:
    """`clip_score=0.10:0.40:0.02`; RecipeError where it names no range."""
    where = f"--vary {vary}"
    match = FORM.fullmatch(vary)
    if not match:
        raise RecipeError(
            "it is not NAME=START:STOP:STEP", where, "write it as in clip_score=0.10:0.40:0.02"
        )
    name, sign, *texts = match.groups()
    try:
        start, stop, step = map(Decimal, texts)
    except InvalidOperation:
        raise RecipeError("a range is three numbers", where, "write START:STOP:STEP") from None
    if not all(number.is_finite() for number in (start, stop, step)):
        raise RecipeError("a range is finite", where, "write three plain numbers")
    if step <= 0 or stop < start:
        raise RecipeError("the range is empty", where, "START is at most STOP, STEP is above 0")
    count = int((stop - start) / step) + 1
    if count > MAX_VALUES:
        raise RecipeError(f"{count:,} values", where, f"take a wider STEP: at most {MAX_VALUES:,}")
    return Vary(name, sign, tuple(start + step * i for i in range(count)))


def select_stage(state: RunState, stage: str) -> PlannedStage:
    """The complete stage of this name that has thresholds; RecipeError where there is none."""
    stages = state.plan.stages
    if stage not in stages:
        do = did_you_mean(stage, stages, "the recipe has")
        raise RecipeError(f"no stage '{stage}'", "--stage", do)
    if not isinstance(stages[stage].stage, Selects):
        is_away = isinstance(stages[stage].stage, StandIn)
        why = "whose code is not at hand: --stages DIR" if is_away else "which has no threshold"
        selects = [name for name, other in stages.items() if isinstance(other.stage, Selects)]
        raise RecipeError(
            f"'{stage}' is {stages[stage].uses}, {why}",
            "--stage",
            f"name a select stage; here: {', '.join(selects) or 'none'}",
        )
    if not state.stages[stage].complete:
        raise RecipeError(f"'{stage}' is not complete", str(state.run), "run the recipe first")
    return stages[stage]


def threshold_of(planned: PlannedStage, vary: Vary) -> Threshold:
    """The one threshold that is varied; RecipeError that names what can be."""
    known = thresholds_of(planned)
    named = [threshold for threshold in known if threshold.name == vary.name]
    hits = {at.text: at for at in named if vary.sign in ("=", at.sign)}
    if len(hits) == 1:
        return next(iter(hits.values()))
    if hits:
        raise RecipeError(
            f"'{vary.name}' is compared {len(hits)} times: {', '.join(hits)}",
            planned.where,
            "name the one by its sign: " + " or ".join(f"{vary.name}{at.sign}…" for at in named),
        )
    names = ", ".join(dict.fromkeys(threshold.name for threshold in known))
    raise RecipeError(
        f"'{planned.name}' has no threshold '{vary.name}{vary.sign.removeprefix('=')}'",
        planned.where,
        f"vary one of: {names}" if names else "no number of its settings decides by itself",
    )
