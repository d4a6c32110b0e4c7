"""Compares with other recipes of a run folder: what one of them keeps of the same rows."""

import threading
from typing import Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.columns import Bools, Columns
from clipmill.pipeline.explore.lost import ends_of, lost
from clipmill.pipeline.run_folder.ran import newest_recipe
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.run_folder.variants import changes, variant, variants
from clipmill.pipeline.terminal import cut, one_line

MOST_CHANGES = 3  # changes listed per variant


class Variants:
    """The rows kept by other recipes of one folder; each is read once, on request."""

    def __init__(self, uri: str, shown: int | None) -> None:
        self.uri, self.shown = uri, shown
        self._kept: dict[tuple[int, str, str | None], tuple[str, Bools]] = {}
        self._lock = threading.Lock()

    def facts(self, columns: Columns) -> list[dict[str, Any]]:
        """Returns number and differences of every recipe except the one shown."""
        run = columns.state.run
        known, _ = variants(run)
        if self.shown is None:
            own_file, own_recipe = newest_recipe(run)
        else:
            current = variant(run, self.shown)
            own_file, own_recipe = current.file, current.ran
        return [
            {"variant": v.number, "ran": v.last_ran, "changes": _differences(v.ran, own_recipe)}
            for v in known
            if v.file != own_file
        ]

    def kept(self, number: int, columns: Columns, end: str | None) -> tuple[str, Bools]:
        """Returns a variant's select stage, if possible of this name, and (N,) the rows it keeps.

        RecipeError if the variant has other rows, or no complete select stage.
        """
        with self._lock:
            key = number, columns.root, end
            if key not in self._kept:
                self._kept[key] = self._looked_at(number, columns, end)
            return self._kept[key]

    def _looked_at(self, number: int, columns: Columns, end: str | None) -> tuple[str, Bools]:
        state = latest(self.uri, number)
        ingest, root = columns.state.plan.stages[columns.root], columns.root
        if root not in state.plan.stages or state.plan.stages[root].folder != ingest.folder:
            raise RecipeError(
                f"variant {number} has other rows", str(state.run), "clipmill diff tells by uid"
            )
        ends = ends_of(state, root)
        if not ends:
            raise RecipeError(
                f"no select stage of variant {number} is complete", str(state.run), "run it first"
            )
        name = end if end in ends else ends[0]
        return name, lost(Columns(state, root), name).code == 0


def _differences(other: Any, current: Any) -> list[str]:
    """Returns the differences of the other recipe from the one shown, a line each."""
    differences = changes(current, other)
    lines = [f"{change.key} = {cut(one_line(change.after), 60)}" for change in differences.settings]
    lines += [f"with {name}" for name in differences.added] + [
        f"without {n}" for n in differences.removed
    ]
    more = len(lines) - MOST_CHANGES
    return lines[:MOST_CHANGES] + ([f"and {more} more"] if more > 0 else [])
