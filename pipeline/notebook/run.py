"""A run folder in Python: its rows, its pictures, and what the ledger answers about it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from clipmill.pipeline.notebook import answers
from clipmill.pipeline.run_folder.state import RunState, latest

if TYPE_CHECKING:
    import polars as pl


class Run:
    """A run folder as it is when it is opened; `status` and a new `clipmill.open` look again."""

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
        """The names of the stages, in the recipe's order."""
        return tuple(self.state.stages)

    def table(
        self,
        stage: str,
        columns: Sequence[str] = (),
        where: str | None = None,
        dropped: str | Sequence[str] | bool | None = None,
    ) -> "pl.LazyFrame":
        """`uid` and the columns of the rows that a stage has, read as the query of them asks.

        Of a select stage those that it keeps; with `dropped`, those that it lost for a reason, or
        for any (True). A column is `column`, or `stage.column`, of any stage over these rows;
        `where` is a condition as `select.where` has it. Of an unfinished run, what is there, with
        a warning.
        """
        from clipmill.pipeline.ledger.rows.table import table

        return table(self.state, stage, columns, where, dropped, stacklevel=3)

    def images(self, stage: str, uids: Iterable[str]) -> "answers.Images":
        """The stored picture of each uid, and why there is none; shown, they are pictures."""
        from clipmill.pipeline.ledger.rows.pictures import images

        return answers.Images(images(self.state, stage, uids))

    def funnel(self) -> "answers.Funnel":
        """Where the rows went, by stage and reason, and each lost row at its first cause."""
        from clipmill.pipeline.ledger.selection.funnel import funnel

        return answers.shown(answers.Funnel, funnel(self.state), self.state)

    def why(self, row: str) -> "answers.Why":
        """What every stage stored for one sample, and why it stays or not.

        `row` is its uid, of which 8 digits may do, its link, or its caption or a part of it.
        """
        from clipmill.pipeline.ledger.selection.why import whys

        (answer,) = whys(self.state, [row])
        return answers.shown(answers.Why, answer, self.state)

    def sweep(self, stage: str, vary: str) -> "answers.Sweep":
        """What a select stage would keep at each value of `vary`: `clip_score=0.10:0.40:0.02`."""
        from clipmill.pipeline.ledger.selection.sweep import sweep

        return answers.shown(answers.Sweep, sweep(self.state, stage, vary), self.state)

    def status(self) -> "answers.Status":
        """How far the run is now, and what failed."""
        from clipmill.pipeline.run_folder.live import status

        return answers.shown(answers.Status, status(self.uri), self.state)

    def glob(self, stage: str) -> str:
        """The Parquet files of a stage, one a shard, for other readers.

        RecipeError where they are not its rows as `table` has them: later passes, a mask, shards
        that are missing.
        """
        from clipmill.pipeline.ledger.rows.table import glob_of

        return glob_of(self.state, stage)
