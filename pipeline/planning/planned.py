"""A stage as the planner leaves it: all that a worker needs of a plan, and no planner with it."""

from dataclasses import dataclass
from functools import cached_property

from clipmill.metadata.schema import KEEP, Derived
from clipmill.pipeline.stage import RowStage, Stage, optional_columns

Binding = tuple[str, str]  # stage and column


def decides(stage: Stage) -> bool:
    """Whether a stage decides which rows stay."""
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
    centroids: str | None
    targets: str | None
    only: str | None
    # The stage whose shards and positions its rows have; empty where it has none, or reads several.
    root: str
    # Read name to where; one a parent for a union and for what reads several roots.
    bindings: tuple[dict[str, Binding], ...]
    mask: dict[str, Binding]  # of `rows`: `keep`, and `repeats` where there is one
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
        """Whether it decides which rows stay."""
        return decides(self.stage)

    @property
    def kept_by(self) -> str | None:
        """The select stage that `rows` names: it decides which rows of `data` are read."""
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
        """The columns that are computed for it as it reads them, by name."""
        reads = (*self.stage.reads, *optional_columns(self.stage))
        return {column.name: column for column in reads if isinstance(column, Derived)}

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The stages whose shards it reads: those of its columns, and the root's for the uid."""
        found = {stage for b in (*self.bindings, self.mask) for stage, _ in b.values()}
        if self.root and not self.is_root:
            found.add(self.root)
        return tuple(sorted(found))

    @property
    def folders(self) -> tuple[str, ...]:
        """The stages whose files in out/ it reads."""
        return tuple(filter(None, (self.data, self.model, self.centroids, self.targets)))

    @property
    def needs(self) -> tuple[str, ...]:
        """Every stage that must be done before this one, directly."""
        only = (self.only,) if self.only else ()
        return tuple(dict.fromkeys((*self.sources, *self.folders, *only)))
