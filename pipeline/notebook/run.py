"""A run folder in Python: its rows, pictures, and what the verbs answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.run_folder.state import RunState, latest

if TYPE_CHECKING:
    import polars as pl

    from clipmill.pipeline.engine.verify import Checked
    from clipmill.pipeline.export import Exported
    from clipmill.pipeline.ledger.selection.diff import Diff
    from clipmill.pipeline.ledger.selection.show import Show
    from clipmill.pipeline.ledger.selection.variants import RunVariants
    from clipmill.pipeline.notebook import answers
    from clipmill.pipeline.notebook.pairs import Pairs


class Run:
    """A run folder as opened; status, export, verify, variants and diff read it anew."""

    def __init__(self, uri: str, variant: int | None = None, state: RunState | None = None) -> None:
        self.uri, self.variant = uri, variant
        self.state = state or latest(uri, variant)

    def __repr__(self) -> str:
        done = sum(stage.complete for stage in self.state.stages.values())
        return f"<run {self.state.run}: {done} of {len(self.state.stages)} stages done>"

    def _repr_html_(self) -> str:
        from clipmill.pipeline.notebook import answers

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
        from clipmill.pipeline.notebook import answers

        return answers.Images(images(self.state, stage, uids))

    def funnel(self) -> "answers.Funnel":
        """Counts rows by stage and reason, and each lost row at its first cause."""
        from clipmill.pipeline.ledger.selection.funnel import funnel
        from clipmill.pipeline.notebook import answers

        return answers.shown(answers.Funnel, funnel(self.state), self.state)

    def why(self, row: str) -> "answers.Why":
        """Returns what every stage stored for one sample, and why it is kept or lost.

        `row` is a uid (8 digits may suffice), a link, or a caption or part of one.
        """
        from clipmill.pipeline.ledger.selection.why import whys
        from clipmill.pipeline.notebook import answers

        (answer,) = whys(self.state, [row])
        return answers.shown(answers.Why, answer, self.state)

    def sweep(self, stage: str, vary: str) -> "answers.Sweep":
        """Counts what a select would keep at each value of `vary`: `clip_score=0.10:0.40:0.02`."""
        from clipmill.pipeline.ledger.selection.sweep import sweep
        from clipmill.pipeline.notebook import answers

        return answers.shown(answers.Sweep, sweep(self.state, stage, vary), self.state)

    def show(self, stage: str, **query: Any) -> "Show":
        """Returns rows of a stage, as `clipmill show` prints them.

        `query` are fields of ShowQuery: where, dropped, near_cut, sort, is_descending, columns,
        most, seed.
        """
        from clipmill.pipeline.ledger.selection.show import ShowQuery, show

        return show(self.state, ShowQuery(stage=stage, **query))

    def variants(self) -> "RunVariants":
        """Lists the recipes that ran in this folder, by number, and what each keeps."""
        from clipmill.pipeline.ledger.selection.variants import tried

        return tried(self.uri)

    def diff(self, before: str, after: str) -> "Diff":
        """Compares two selections: variants by number, stages by name, `2:STAGE`, or other runs."""
        from clipmill.pipeline.ledger.selection.diff import diff
        from clipmill.pipeline.ledger.selection.sides import side_of

        return diff(side_of(before, self.uri), side_of(after, self.uri))

    def report(self, file: str | Path, baselines: Sequence[str] = ()) -> Path:
        """Writes the run as one HTML page, and returns its path."""
        from clipmill.pipeline.report.build import report

        page = Path(file)
        page.write_text(report(self.state, baselines, self.variant), encoding="utf-8")
        return page

    def export(
        self, to: str, out: str, *, workers: int | None = None, **options: Any
    ) -> "Exported":
        """Writes rows to a folder, as `clipmill export` does; StageError if there are none.

        `options` are fields of ExportRequest: stage, columns, captions.
        """
        from clipmill.pipeline.export import ExportRequest, export
        from clipmill.pipeline.notebook.start import executor_of
        from clipmill.pipeline.progress import watcher

        request = ExportRequest(to=to, **options)
        chosen = executor_of("local", workers)
        try:
            with watcher() as watch:
                return export(latest(self.uri, self.variant), request, str(out), chosen, watch)
        finally:
            chosen.close()

    def retry(self, *reasons: str, workers: int | None = None) -> "Run":
        """Tries rows again that failed for these reasons; returns the finished run."""
        from clipmill.pipeline.notebook.start import started

        return Run(self.uri, state=started(self.state.plan, self.uri, workers, retry=reasons))

    def verify(self) -> "list[Checked]":
        """Compares every stored file with its record; each folder says what is `damaged`."""
        from clipmill.metadata.storage import Storage
        from clipmill.pipeline.engine.verify import verify

        return verify(Storage(self.uri), lambda done, total: None)

    def to_torch(
        self, stage: str, caption: str = "text", transform: Callable[[Any], Any] | None = None
    ) -> "Pairs":
        """Returns a PyTorch Dataset of (picture, caption), of the rows that have a picture.

        `transform` gets each picture, a PIL image in RGB; `caption` is any column of the rows.
        """
        from clipmill.pipeline.notebook.pairs import Pairs

        return Pairs(self.uri, self.variant, stage, caption, transform, self.state)

    def to_hf(self, stage: str, caption: str = "text") -> Any:
        """Returns a Hugging Face Dataset of image, text and uid; the package `datasets` has it."""
        from clipmill.pipeline.notebook.pairs import hugging_face

        return hugging_face(self.to_torch(stage, caption))

    def status(self) -> "answers.Status":
        """Reads the run's progress now, and what failed."""
        from clipmill.pipeline.notebook import answers
        from clipmill.pipeline.run_folder.live import status

        return answers.shown(answers.Status, status(self.uri), self.state)

    def glob(self, stage: str) -> str:
        """Returns a glob of a stage's Parquet files, one a shard, for other readers.

        Raises RecipeError if they differ from `table`: later passes, a mask, or missing shards.
        """
        from clipmill.pipeline.ledger.rows.table import glob_of

        return glob_of(self.state, stage)
