"""Holds a run for the explorer: its columns by root, and the answers to a page's questions."""

import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.explore import questions, recipe
from clipmill.pipeline.explore.against import Variants
from clipmill.pipeline.explore.cache import Cache
from clipmill.pipeline.explore.columns import Columns
from clipmill.pipeline.explore.counts import Counts, relations
from clipmill.pipeline.explore.shown import picture_of, rows_shown, run_facts
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.findings.clusters import cluster_maps
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.run_folder.state import latest

PICTURE_BYTES = 60 << 20  # cache of small pictures
SIDES = {"small": 200, "large": 640}  # pixels


class Session:
    """Answers from one reading of the run folder; `look_again` reads it again."""

    def __init__(
        self, uri: str, beside: Path, variant: int | None = None, show_unsafe: bool = False
    ) -> None:
        self.uri, self.beside, self.variant = uri, beside, variant
        self.show_unsafe = show_unsafe
        self._lock = threading.Lock()
        self._drawing = threading.Lock()  # warnings are caught for all threads
        self.look_again()

    def look_again(self, _: bytes = b"") -> dict[str, Any]:
        """Reads the folder again, with everything stored since."""
        state = latest(self.uri, self.variant)
        state.show_unsafe = self.show_unsafe
        roots = {
            name: Columns(state, name)
            for name, stage in state.stages.items()
            if stage.planned.is_root and stage.planned.gives_rows and stage.shards
        }
        if not roots:
            raise RecipeError(
                "no stage has stored rows", self.uri, "wait for the first shard, or run the recipe"
            )
        with self._lock:
            self.state, self.roots = state, roots
            variants = Variants(self.uri, self.variant)
            self.counts = {name: Counts(columns, variants) for name, columns in roots.items()}
            self._pictures = Cache[tuple[str, int, str], tuple[str, bytes]](PICTURE_BYTES)
        return self.facts()

    def facts(self, _: bytes = b"") -> dict[str, Any]:
        facts = run_facts(self.state, self.roots)
        counts = next(iter(self.counts.values()))
        return facts | {"variants": counts.variants.facts(counts.columns)}

    def query(self, body: bytes) -> dict[str, Any]:
        query: questions.Query = questions.read(body, questions.Query)
        with self._lock:  # one query at a time: each takes a core
            return self._counts(query.root).answer(query)

    def rows(self, body: bytes) -> list[dict[str, Any]]:
        question: questions.Rows = questions.read(body, questions.Rows)
        counts = self._counts(question.root)
        return rows_shown(counts.columns, counts.masks, question)

    def relations(self, body: bytes) -> dict[str, Any]:
        question: questions.Relations = questions.read(body, questions.Relations)
        with self._lock:
            return relations(self._counts(question.root).masks, question)

    def why(self, body: bytes) -> Any:
        question = questions.read(body, questions.Why)
        return as_json(why(self.state, question.uid))

    def clusters(self, _: bytes) -> Any:
        return as_json(cluster_maps(self.state))

    def changed(self, body: bytes) -> dict[str, Any]:
        return dict(vars(self._changed(body)))

    def save(self, body: bytes) -> dict[str, Any]:
        file = str(recipe.save(self._changed(body).text, self.beside))
        command = ["clipmill", "run", file, "--out", str(self.state.run)]
        return {"file": file, "command": shlex.join(command)}

    def picture(self, root: str, row: int, size: str) -> tuple[str, bytes] | None:
        """Returns type and bytes of a row's re-encoded picture; None if there is none to show."""
        key = root, row, size
        small = self._pictures.get(key)
        if small is None and root in self.roots and size in SIDES:
            with self._drawing:
                small = picture_of(self.roots[root], row, SIDES[size])
            if small is not None:
                self._pictures.put(key, small, len(small[1]))
        return small

    @property
    def answers(self) -> dict[str, Callable[[bytes], Any]]:
        """Returns the answers by their name in the address."""
        return {
            "run": self.facts,
            "look-again": self.look_again,
            "query": self.query,
            "rows": self.rows,
            "relations": self.relations,
            "why": self.why,
            "clusters": self.clusters,
            "recipe": self.changed,
            "save": self.save,
        }

    def _counts(self, root: str) -> Counts:
        if root not in self.counts:
            raise RecipeError(f"no rows of '{root}'", "the page", "load it again")
        return self.counts[root]

    def _changed(self, body: bytes) -> recipe.Changed:
        question = questions.read(body, questions.Change)
        return recipe.changed(self._counts(question.root).columns, question.threshold)
