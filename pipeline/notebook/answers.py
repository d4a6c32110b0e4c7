"""Renders the ledger's answers for notebooks: tables and pictures, all text escaped.

Each class is a dataclass of the ledger with an HTML view.
"""

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
MOST = 60  # pictures shown at most
T = TypeVar("T")


def shown(cls: type[T], answer: Any, state: RunState | None = None) -> T:
    """Converts an answer to its class for notebooks; pictures come from the state's run."""
    converted = cls(**{field.name: getattr(answer, field.name) for field in fields(answer)})
    object.__setattr__(converted, "_state", state)  # the dataclass is frozen, and this is no field
    return converted


class Plan(plan.Plan):
    """A recipe's stages, in the order in which they run."""

    def __repr__(self) -> str:
        return f"<plan {self.recipe.name}: {', '.join(self.stages)}>"

    def _repr_html_(self) -> str:
        rows = [
            {
                "name": name,
                "uses": planned.uses,
                "from": ", ".join(planned.parents or filter(None, (planned.data,))),
                "columns": ", ".join(column.name for column in columns_of(planned.stage)),
            }
            for name, planned in self.stages.items()
        ]
        return render(TEMPLATE, part="plan", name=self.recipe.name, seed=self.seed, rows=rows)


class Funnel(funnel.Funnel):
    """A funnel: rows by stage and reason."""

    def __repr__(self) -> str:
        ends = [f"{end.kept:,} of {end.rows:,} rows kept by '{end.stage}'" for end in self.ends]
        return f"<funnel: {'; '.join(ends) or 'no finished select'}>"

    def _repr_html_(self) -> str:
        return render(TEMPLATE, part="funnel", funnel=self)


class Why(why.Why):
    """One sample: what each stage stored for it."""

    _state: RunState

    def __repr__(self) -> str:
        said = "; ".join(end.sentence for end in self.ends)
        return f"<why {self.uid[:8]}: {said or f'{len(self.stages)} stages'}>"

    def _repr_html_(self) -> str:
        place = self.shard, self.position
        roots = [row.stage for row in self.stages if self._state.plan.stages[row.stage].is_root]
        last = self.stages[-1].stage if len(roots) == 1 else roots[0]
        seen = samples_at(self._state, last, [place], LARGE)[place]
        return render(TEMPLATE, part="why", why=self, seen=seen)


class Sweep(sweep.Sweep):
    """A select stage at several values of one threshold."""

    _state: RunState

    def __repr__(self) -> str:
        kept = ", ".join(f"{point.rule}: {point.kept:,}" for point in self.points)
        return f"<sweep {self.stage}: {kept}>"

    def _repr_html_(self) -> str:
        seen = samples_at(self._state, self.stage, {sample.place for sample in self.samples})
        return render(TEMPLATE, part="sweep", sweep=self, seen=seen)


class Status(live.LiveRun):
    """The progress of a run."""

    def _repr_html_(self) -> str:
        return render(TEMPLATE, part="status", status=self)


class Images(dict[str, StoredImage]):
    """Pictures by uid."""

    def __repr__(self) -> str:
        missing = sum(image.missing is not None for image in self.values())
        return f"<{len(self)} images, {missing} of them missing>"

    def _repr_html_(self) -> str:
        images = list(self.values())[:MOST]
        rows = [
            {"one": image, "picture": picture(image.image, is_unsafe=image.is_unsafe)}
            for image in images
        ]
        return render(TEMPLATE, part="images", rows=rows, more=len(self) - len(images))


def stages_html(state: RunState) -> str:
    """Renders the stages of a run: state, rows, and columns that can be read."""
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
