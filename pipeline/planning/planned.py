"""A planned stage, which workers get; importing it imports no planner."""

from dataclasses import dataclass
from functools import cached_property

from clipmill.metadata.schema import KEEP, Derived
from clipmill.pipeline.stage import RowStage, Stage, optional_columns

Binding = tuple[str, str]  # stage and column


def decides(stage: Stage) -> bool:
    """Returns whether a stage writes `keep`, that is, decides which rows stay."""
    return any(column.name == KEEP.name for column in stage.writes)


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage of a recipe, ready to run."""

    name: str
    uses: str
    stage: Stage
    parents: tuple[str, ...]  # `from`
    data: str | None
    elsewhere: str | None  # URI of an export that another run made: `data: "export:…"`
    model: str | None
    start: str | None
    centroids: str | None
    targets: str | None
    only: str | None
    # The stage whose shards and positions its rows have; empty if it has none or reads several.
    root: str
    # Name read -> binding; for a union or a stage that reads several roots, one for each parent.
    bindings: tuple[dict[str, Binding], ...]
    mask: dict[str, Binding]  # of the select in `rows`: `keep`, and `repeats` if there is one
    fingerprint: str
    where: str

    @property
    def folder(self) -> str:
        return f"stages/{self.name}-{self.fingerprint}"

    @property
    def is_row(self) -> bool:
        return isinstance(self.stage, RowStage)

    @property
    def is_select(self) -> bool:
        """True where it decides which rows stay."""
        return decides(self.stage)

    @property
    def kept_by(self) -> str | None:
        """The select stage that `rows` names, which decides the rows of `data` that are read."""
        return self.mask[KEEP.name][0] if self.mask else None

    @property
    def is_root(self) -> bool:
        return self.root == self.name

    @property
    def gives_rows(self) -> bool:
        return "rows" in self.stage.gives

    @property
    def gives_data(self) -> bool:
        return "data" in self.stage.gives

    @property
    def derived(self) -> dict[str, Derived]:
        """Columns that are computed as it reads them, by name."""
        reads = (*self.stage.reads, *optional_columns(self.stage))
        return {column.name: column for column in reads if isinstance(column, Derived)}

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Stages whose shards it reads: writers of its columns, and the root for the uid."""
        stages = {stage for b in (*self.bindings, self.mask) for stage, _ in b.values()}
        if self.root and not self.is_root:
            stages.add(self.root)
        return tuple(sorted(stages))

    @property
    def folders(self) -> tuple[str, ...]:
        """Stages whose files in out/ it reads."""
        named = (self.data, self.model, self.start, self.centroids, self.targets)
        return tuple(filter(None, named))

    @property
    def needs(self) -> tuple[str, ...]:
        """Direct dependencies: stages that must be done before this one."""
        only = (self.only,) if self.only else ()
        return tuple(dict.fromkeys((*self.sources, *self.folders, *only)))
