"""The ledger's answers as a notebook shows them: tables and pictures, every text escaped.

Each is the ledger's own dataclass, with its fields; it is drawn when a notebook asks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from clipmill.pipeline.ledger.rows.pictures import StoredImage
from clipmill.pipeline.ledger.selection import funnel, sweep, why
from clipmill.pipeline.planning import plan
from clipmill.pipeline.planning.bindings import columns_of
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.pictures import LARGE, picture
from clipmill.pipeline.report.samples import samples_at
from clipmill.pipeline.run_folder import live
from clipmill.pipeline.run_folder.state import RunState, summary

TEMPLATE = "notebook.html"
MOST = 60  # pictures that are shown
T = TypeVar("T")


def shown(cls: type[T], answer: Any, state: RunState | None = None) -> T:
    """The same answer as one that a notebook shows; pictures are taken from the state's run."""
    made = cls(**{field.name: getattr(answer, field.name) for field in fields(answer)})
    object.__setattr__(made, "_state", state)  # of a frozen dataclass, and no field of it
    return made


class Plan(plan.Plan):
    """The stages of a recipe, in the order in which they run."""

    def _repr_html_(self) -> str:
        rows = [
            {
                "name": name,
                "uses": one.uses,
                "from": ", ".join(one.parents or filter(None, (one.data,))),
                "columns": ", ".join(column.name for column in columns_of(one.stage)),
            }
            for name, one in self.stages.items()
        ]
        return render(TEMPLATE, part="plan", name=self.recipe.name, seed=self.seed, rows=rows)


class Funnel(funnel.Funnel):
    """Where the rows went."""

    def _repr_html_(self) -> str:
        return render(TEMPLATE, part="funnel", funnel=self)


class Why(why.Why):
    """One sample."""

    _state: RunState

    def _repr_html_(self) -> str:
        place = self.shard, self.position
        roots = [row.stage for row in self.stages if self._state.plan.stages[row.stage].is_root]
        last = self.stages[-1].stage if len(roots) == 1 else roots[0]
        seen = samples_at(self._state, last, [place], LARGE)[place]
        return render(TEMPLATE, part="why", why=self, seen=seen)


class Sweep(sweep.Sweep):
    """A select stage at several values of one threshold."""

    _state: RunState

    def _repr_html_(self) -> str:
        seen = samples_at(self._state, self.stage, {sample.place for sample in self.samples})
        return render(TEMPLATE, part="sweep", sweep=self, seen=seen)


class Status(live.LiveRun):
    """How far the run is."""

    def _repr_html_(self) -> str:
        return render(TEMPLATE, part="status", status=self)


class Images(Mapping[str, StoredImage]):
    """Pictures by uid."""

    def __init__(self, found: Mapping[str, StoredImage]) -> None:
        self._found = found

    def __getitem__(self, uid: str) -> StoredImage:
        return self._found[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        missing = sum(one.missing is not None for one in self.values())
        return f"<{len(self)} images, {missing} of them missing>"

    def _repr_html_(self) -> str:
        few = list(self.values())[:MOST]
        rows = [{"one": one, "picture": picture(one.image)} for one in few]
        return render(TEMPLATE, part="images", rows=rows, more=len(self) - len(few))


def stages_html(state: RunState) -> str:
    """The stages of a run: what is done, and the columns that can be asked for."""
    rows = [
        {
            "name": name,
            "uses": stage.planned.uses,
            "done": summary(stage),
            "rows": stage.shards.rows,
            "columns": ", ".join(column.name for column in columns_of(stage.planned.stage)),
        }
        for name, stage in state.stages.items()
    ]
    return render(TEMPLATE, part="stages", run=str(state.run), rows=rows)
