"""Resolves one side of a diff: a stage of a run in one of its variants, and each row's outcome."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.keys import without_keys
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.ledger.selection.causes import (
    KEPT,
    Cause,
    is_end,
    later_stages,
    losses,
    through_masks,
)
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.run_folder.ran import RanRecipe
from clipmill.pipeline.run_folder.state import RunState, plan_of, seen_through, summary
from clipmill.pipeline.run_folder.variants import Variant, run_again, variant, variants

# Shapes: N rows of a shard.

STAGE = "[A-Za-z][A-Za-z0-9_-]*"
OF_ANY_RUN = re.compile(rf"(?P<run>.+?)(?:@(?P<number>\d+))?(?::(?P<stage>{STAGE}))?", re.DOTALL)
OF_ONE_RUN = re.compile(rf"(?P<number>\d+)?(?::?(?P<stage>{STAGE}))?")


@dataclass
class Side:
    """`stage` of a run, in one of the run's variants; `name` as given by the user, without keys."""

    name: str
    variant: Variant
    state: RunState
    stage: str
    outcomes: list[Cause] = field(default_factory=lambda: [KEPT])  # outcomes met so far, KEPT first

    @property
    def root(self) -> str:
        return self.state.plan.stages[self.stage].root

    @property
    def ran(self) -> RanRecipe:
        return self.variant.ran

    @property
    def shards(self) -> list[int]:
        return sorted(self.state.stages[self.root].shards)

    @cached_property
    def later(self) -> list[str]:
        """Returns the stages whose failures count as this stage's losses, as in the funnel."""
        this = self.state.plan.stages[self.stage]
        is_last = is_end(this, self.state.row_stages)
        return later_stages(self.state, self.stage) if is_last else []

    def outcome(self, shard: int) -> NDArray[np.int32]:
        """Returns (N,) the index of each row's first cause in `outcomes`; 0 if it is kept."""
        reasons = ShardReasons(self.state, self.root, shard)
        outcome_N = np.zeros(self.state.stages[self.root].shards[shard].rows, np.int32)
        for stage, code, rows in self._lost(reasons):
            if (stage, code) not in self.outcomes:
                self.outcomes.append((stage, code))
            outcome_N[rows.to_numpy(zero_copy_only=False)] = self.outcomes.index((stage, code))
        return outcome_N

    def _lost(self, reasons: ShardReasons) -> Iterator[tuple[str, str, pa.Array]]:
        planned = self.state.plan.stages[self.stage]
        if planned.is_select:
            yield from losses(reasons, self.stage, self.later)
            return
        codes = reasons.counts(self.stage).keys() - {""}
        own = np.asarray(reasons[self.stage].fill_null("")) if codes else np.array([], str)
        each = [(self.stage, code, pa.array(own == code)) for code in sorted(codes)]
        yield from through_masks(reasons, each)


def side_of(text: str, run: str | None) -> Side:
    """Parses `RUN`, `RUN@2`, `RUN:STAGE`, `RUN@2:STAGE`; with `run` set `2`, `STAGE`, `2:STAGE`.

    RecipeError if it names nothing that is complete.
    """
    form = "write RUN, RUN@2, RUN:STAGE or RUN@2:STAGE"
    match = OF_ANY_RUN.fullmatch(text)
    if run is not None:
        form = "with --run write 2, STAGE or 2:STAGE: `clipmill diff --run …` has the numbers"
        match = OF_ONE_RUN.fullmatch(text)
    if match is None or not text:
        raise RecipeError(f"'{without_keys(text)}' as a side", "the arguments", form)
    uri, number, stage = run, match["number"], match["stage"]
    if uri is None:
        uri = match["run"]
        if "://" not in text and os.path.isdir(text):  # a folder with an @ or a colon in its name
            uri, number, stage = text, None, None
    storage = Storage(uri)
    chosen = _variant(storage, number)
    state = seen_through(plan_of(chosen.ran, storage), storage)
    name = without_keys(text)
    return Side(name, chosen, state, _stage(state, name, stage, run_again(storage, chosen)))


def _variant(run: Storage, number: str | None) -> Variant:
    if number is not None:
        return variant(run, int(number))
    known, unreadable = variants(run)
    if last := next((v for v in known if v.is_last), None):
        return last
    raise RecipeError(
        "a recipe that cannot be read",
        f"{run}/recipes/{unreadable[-1]}",
        "run the recipe again, or name another variant: RUN@1",
    )


def _stage(state: RunState, side: str, stage: str | None, again: str) -> str:
    """Returns the stage to compare; if none is named, the last select of the recipe.

    `again` is the command that runs the recipe to its end.
    """
    stages = state.plan.stages
    with_rows = {name: planned for name, planned in stages.items() if planned.gives_rows}
    if stage is None:
        planned_stages = list(with_rows.values())
        ends = [planned.name for planned in planned_stages if is_end(planned, planned_stages)]
        stage = (ends or list(with_rows))[-1]
    if stage not in with_rows:
        problem = f"no stage '{stage}'" + (" with rows" if stage in stages else "")
        do = did_you_mean(stage, list(with_rows), "stages with rows")
        raise RecipeError(problem, f"'{side}', run {state.run}", do)
    if not state.stages[stage].complete:
        done = [name for name in with_rows if state.stages[name].complete]
        named = f"; or name a stage that is: {', '.join(done)}" if done else ""
        raise RecipeError(
            f"'{stage}' is not complete: {summary(state.stages[stage])}",
            f"'{side}', run {state.run}",
            f"{again}{named}",
        )
    return stage
