"""A run folder in Python: its rows, pictures, and the ledger's answers."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from clipmill.pipeline.notebook import answers
from clipmill.pipeline.run_folder.state import RunState, latest

if TYPE_CHECKING:
    import polars as pl


class Run:
    """A run folder as it was when opened; only `status` and a new `clipmill.open` read it again."""

    def __init__(self, uri: str, variant: int | None = None, state: RunState | None = None) -> None:
        self.uri = uri
        self.state = state or latest(uri, variant)

    def __repr__(self) -> str:
        done = sum(stage.complete for stage in self.state.stages.values())
        return f"<run {self.state.run}: {done} of {len(self.state.stages)} stages done>"

    def _repr_html_(self) -> str:
        return answers.stages_html(self.state)

    @property
    def stages(self) -> tuple[str, ...]:
        """Returns the stages' names, in the recipe's order."""
        return tuple(self.state.stages)

    def table(
        self,
        stage: str,
        columns: Sequence[str] = (),
        where: str | None = None,
        dropped: str | Sequence[str] | bool | None = None,
    ) -> "pl.LazyFrame":
        """Returns `uid` and columns of a stage's rows, read lazily.

        A select stage has the rows it keeps; `dropped` asks for those it lost for a reason, or for
        any (True). A column is `column` or `stage.column`, of any stage over these rows; `where` is
        a condition as in `select.where`. An unfinished run gives the rows it has, with a warning.
        """
        from clipmill.pipeline.ledger.rows.table import table

        return table(self.state, stage, columns, where, dropped, stacklevel=3)

    def images(self, stage: str, uids: Iterable[str]) -> "answers.Images":
        """Returns each uid's stored picture, or why there is none; a notebook shows them."""
        from clipmill.pipeline.ledger.rows.pictures import images

        return answers.Images(images(self.state, stage, uids))

    def funnel(self) -> "answers.Funnel":
        """Counts rows by stage and reason, and each lost row at its first cause."""
        from clipmill.pipeline.ledger.selection.funnel import funnel

        return answers.shown(answers.Funnel, funnel(self.state), self.state)

    def why(self, row: str) -> "answers.Why":
        """Returns what every stage stored for one sample, and why it is kept or lost.

        `row` is a uid (8 digits may suffice), a link, or a caption or part of one.
        """
        from clipmill.pipeline.ledger.selection.why import whys

        (answer,) = whys(self.state, [row])
        return answers.shown(answers.Why, answer, self.state)

    def sweep(self, stage: str, vary: str) -> "answers.Sweep":
        """Counts what a select would keep at each value of `vary`: `clip_score=0.10:0.40:0.02`."""
        from clipmill.pipeline.ledger.selection.sweep import sweep

        return answers.shown(answers.Sweep, sweep(self.state, stage, vary), self.state)

    def status(self) -> "answers.Status":
        """Reads the run's progress now, and what failed."""
        from clipmill.pipeline.run_folder.live import status

        return answers.shown(answers.Status, status(self.uri), self.state)

    def glob(self, stage: str) -> str:
        """Returns a glob of a stage's Parquet files, one a shard, for other readers.

        Raises RecipeError if they differ from `table`: later passes, a mask, or missing shards.
        """
        from clipmill.pipeline.ledger.rows.table import glob_of

        return glob_of(self.state, stage)
