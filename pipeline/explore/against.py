"""The other recipes of a run folder, and what one of them keeps of the same rows."""

import threading
from typing import Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore.columns import Bools, Columns
from clipmill.pipeline.explore.lost import ends_of, lost
from clipmill.pipeline.run_folder.ran import newest_recipe
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.run_folder.variants import changes, variant, variants
from clipmill.pipeline.terminal import cut, one_line

MOST_CHANGES = 3  # of a variant that are told


class Variants:
    """What other recipes of one folder keep; each is looked at once, when it is asked for."""

    def __init__(self, uri: str, shown: int | None) -> None:
        self.uri, self.shown = uri, shown
        self._kept: dict[tuple[int, str, str | None], tuple[str, Bools]] = {}
        self._lock = threading.Lock()

    def facts(self, columns: Columns) -> list[dict[str, Any]]:
        """Number and differences of every recipe but the one that is shown."""
        run = columns.state.run
        there, _ = variants(run)
        if self.shown is None:
            mine, now = newest_recipe(run)[0], newest_recipe(run)[1]
        else:
            of = variant(run, self.shown)
            mine, now = of.file, of.ran
        return [
            {"variant": each.number, "ran": each.last_ran, "changes": _told(each.ran, now)}
            for each in there
            if each.file != mine
        ]

    def kept(self, number: int, columns: Columns, end: str | None) -> tuple[str, Bools]:
        """A select stage of a variant, that of this name where it has one, and (N,) what it keeps.

        RecipeError where the variant has other rows, or no select stage of it is complete.
        """
        with self._lock:
            key = number, columns.root, end
            if key not in self._kept:
                self._kept[key] = self._looked_at(number, columns, end)
            return self._kept[key]

    def _looked_at(self, number: int, columns: Columns, end: str | None) -> tuple[str, Bools]:
        state = latest(self.uri, number)
        mine, root = columns.state.plan.stages[columns.root], columns.root
        if root not in state.plan.stages or state.plan.stages[root].folder != mine.folder:
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


def _told(then: Any, now: Any) -> list[str]:
    """What the other recipe has that the one shown has not, a line each."""
    found = changes(now, then)
    lines = [f"{it.key} = {cut(one_line(it.after), 60)}" for it in found.settings]
    lines += [f"with {name}" for name in found.added] + [f"without {n}" for n in found.removed]
    more = len(lines) - MOST_CHANGES
    return lines[:MOST_CHANGES] + ([f"and {more} more"] if more > 0 else [])
