"""Reports the effect of balancing on concepts: counts before and after, examples, languages."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import (
    BALANCE_RANK,
    CONCEPT_IDS,
    CONCEPT_LIST,
    DECIDING_CONCEPT,
    KEEP,
    LANGUAGE,
    UID,
)
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.ledger.rows.stored import Place, artifacts, binding, rows_at, tables
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows of a shard, M concepts of them, E entries of the list.

ENDS = 6  # concepts shown from the heaviest and from the rarest
PICTURES = 4  # example rows of each
POINTS = 200  # points of a curve, spaced by logarithm
LANGUAGES = 20  # the largest
Curve = tuple[tuple[int, int], ...]  # rank and count, from the heaviest down


class DrawnRow(NamedTuple):
    """A row's place, its least draw, the concept that drew it, and whether it is kept."""

    place: Place
    rank: float | None
    concept: str | None
    keep: bool


@dataclass(frozen=True, kw_only=True)
class ConceptRows:
    """One concept: rows that name it before and after balancing, and a few examples."""

    entry: str
    language: str | None
    count: int
    kept: int
    rows: tuple[DrawnRow, ...]


@dataclass(frozen=True, kw_only=True)
class LanguageRows:
    """Rows of one language, those that name a concept, and those kept."""

    name: str
    rows: int
    matched: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Balance:
    """One complete balance of `rows` rows, of which `matched` name a concept.

    `expected` rows would be kept, with standard deviation `sigma`. Of `entries` concepts `met` are
    in captions, and `above` in more than t rows; a t of null is infinite.
    """

    stage: str
    t: float | None
    rows: int
    matched: int
    expected: float
    sigma: float
    kept: int
    entries: int
    met: int
    above: int
    before: Curve
    after: Curve
    heaviest: tuple[ConceptRows, ...]
    rarest: tuple[ConceptRows, ...]
    languages: tuple[LanguageRows, ...]


def balances(state: RunState) -> list[Balance]:
    """Returns the balance of every complete stage with concept counts."""
    answers = []
    for name, stage in state.stages.items():
        counts, sizes = artifacts(stage, "concepts"), artifacts(stage, "balance")
        if counts and sizes and stage.shards:
            answers.append(_balance(state, name, *counts.values(), *sizes.values()))
    return answers


def _balance(state: RunState, name: str, counts: str, sizes: str) -> Balance:
    outputs = Outputs(state.stages[name].folder)
    table = pl.read_parquet(outputs.read(counts)).with_row_index("id")
    summary = json.loads(outputs.read(sizes))
    met = table.filter(pl.col("count") > 0).sort(["count", "id"], descending=[True, False])
    ends = met.head(ENDS).rows(named=True), met.tail(ENDS).reverse().rows(named=True)
    shown = dict.fromkeys(concept["id"] for end in ends for concept in end)
    places, languages = _examples_and_languages(state, name, list(shown))
    heaviest, rarest = (
        tuple(
            ConceptRows(
                entry=concept["entry"],
                language=concept["language"],
                count=concept["count"],
                kept=concept["kept"],
                rows=_drawn(state, name, places[concept["id"]]),
            )
            for concept in end
        )
        for end in ends
    )
    return Balance(
        stage=name,
        **{key: summary[key] for key in ("t", "rows", "matched", "expected", "sigma", "kept")},
        entries=len(table),
        met=len(met),
        above=len(met.filter(pl.col("count") > pl.col("t"))),
        before=ranked(met["count"].to_numpy()),
        after=ranked(met["kept"].to_numpy()),
        heaviest=heaviest,
        rarest=rarest,
        languages=languages,
    )


def ranked(count_E: NDArray[np.int64]) -> Curve:
    """Returns counts above 0 by rank, from the heaviest down, thinned to POINTS."""
    count = np.sort(count_E[count_E > 0])[::-1]
    if not len(count):
        return ()
    rank = np.unique(np.geomspace(1, len(count), POINTS).astype(np.int64))
    return tuple(zip(rank.tolist(), count[rank - 1].tolist(), strict=True))


def _examples_and_languages(
    state: RunState, name: str, concepts: list[int]
) -> tuple[dict[int, list[Place]], tuple[LanguageRows, ...]]:
    """Returns PICTURES rows of each concept, chosen by hash, and the largest languages' counts."""
    planned = state.plan.stages[name]
    language = binding(state, name, LANGUAGE.name)
    bound = {
        "ids": planned.bindings[0][CONCEPT_IDS.name],
        "list": planned.bindings[0][CONCEPT_LIST.name],
        "rank": (name, BALANCE_RANK.name),
        "kept": (name, KEEP.name),
        **({"language": language} if language else {}),
    }
    examples: dict[int, list[tuple[int, Place]]] = {concept: [] for concept in concepts}
    counts = []
    for shard, table in enumerate(tables(state, planned.root, bound)):
        bits_N = coin_hash(table[UID.name], seed=state.plan.seed, stage=name, purpose="concepts")
        ids = table["ids"].combine_chunks()
        row_M = pc.list_parent_indices(ids).to_numpy()
        concept_M = pc.list_flatten(ids).to_numpy()
        drew_N = table["rank"].is_valid().to_numpy()
        hit_M = np.isin(concept_M, concepts) & drew_N[row_M]
        for concept in np.unique(concept_M[hit_M]).tolist():
            rows = row_M[hit_M & (concept_M == concept)]
            least = rows[np.argsort(bits_N[rows], kind="stable")[:PICTURES]]
            candidates = [(int(bits_N[row]), (shard, int(row))) for row in least]
            examples[concept] = sorted(examples[concept] + candidates)[:PICTURES]
        if language:
            columns = table.select(["language", "list", "kept"]).rename_columns(
                {"language": "name"}
            )
            named = pl.DataFrame(columns).group_by(pl.col("name").cast(pl.String))
            counts.append(
                named.agg(pl.len().alias("rows"), matched=pl.count("list"), kept=pl.sum("kept"))
            )
    places = {concept: [place for _, place in rows] for concept, rows in examples.items()}
    if not counts:
        return places, ()
    by_language = pl.concat(counts).with_columns(pl.col("name").fill_null("(none)"))
    sums = by_language.group_by("name").sum().sort("rows", "name", descending=[True, False])
    return places, tuple(LanguageRows(**row) for row in sums.head(LANGUAGES).rows(named=True))


def _drawn(state: RunState, name: str, places: list[Place]) -> tuple[DrawnRow, ...]:
    columns = {
        column.name: (name, column.name) for column in (BALANCE_RANK, DECIDING_CONCEPT, KEEP)
    }
    rows = rows_at(state, columns, places)
    return tuple(DrawnRow(place, *row.values()) for place, row in zip(places, rows, strict=True))
