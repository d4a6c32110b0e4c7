"""Applies rules to each text of a row, and finds the passing texts that a mix keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import ORIGINAL, TEXT_CLIP_SCORE, TEXT_FIELDS, TEXTS
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.texts.lists import flat_texts, text_list
from clipmill.stages.select import _sql as sql

# Shapes: T texts of a shard; N rows, T texts of all of them.

WORDS = "words"  # name in `where` of a text's number of words, split at white space
GBC = MappingProxyType(  # DFN5B-H-378's cosines
    {
        **{"original": 0.2497, "short": 0.2311, "long": 0.1917, "detailed": 0.1917},
        **{"relation": 0.1852, "composition": 0.1181, "short_composition": 0.1398},
        **{"detailed_entity": 0.1533},
    }
)
Bools = NDArray[np.bool_]


class Broken:
    """The first rule that each of T texts breaks."""

    def __init__(self, texts: int) -> None:
        self.passes_T = np.ones(texts, bool)
        self.reason_T = np.full(texts, None, object)

    def add(self, breaks_T: Bools, rule: str) -> None:
        """Adds a rule; texts that broke an earlier one keep their reason."""
        self.reason_T[breaks_T & self.passes_T] = rule
        self.passes_T = self.passes_T & ~breaks_T


class Texts:
    """The texts of a shard in one flat array, and values beside them."""

    def __init__(self, shard: pa.Table, captions: tuple[str, ...]) -> None:
        if captions:
            texts = flat_texts(shard, captions, has_own=True)
            count_N = np.bincount(texts["row"].to_numpy(), minlength=len(shard))
            lists = text_list(texts, count_N)
        else:
            lists = shard[TEXTS.name].combine_chunks()
        self.shard = shard
        self.count_N = pc.list_value_length(lists).fill_null(0).to_numpy()
        self.row_T = np.repeat(np.arange(len(shard)), self.count_N)
        self.values = pc.list_flatten(lists)
        self.part = {name: pc.struct_field(self.values, name) for name in TEXT_FIELDS}
        is_own = pc.equal(self.part["source"], ORIGINAL).fill_null(False).to_numpy(False)
        self.original_T = is_own & self.part["text"].is_valid().to_numpy(False)
        self.scores = pa.nulls(len(self.row_T), pa.float32())
        if TEXT_CLIP_SCORE.name in shard.column_names:
            self.scores = self.beside(TEXT_CLIP_SCORE.name)
        self.score_T = self.scores.to_numpy(False).astype(np.float32)  # NaN where there is none

    def beside(self, name: str) -> pa.Array:
        """Returns (T,) a column's list values beside the texts; null where a row has no list."""
        lists = self.shard[name].combine_chunks()
        count_N = pc.list_value_length(lists).fill_null(0).to_numpy()
        has_N = lists.is_valid().to_numpy(zero_copy_only=False)
        if len(row := np.flatnonzero(has_N & (count_N != self.count_N))):
            values, texts = count_N[row[0]], self.count_N[row[0]]
            raise StageError(
                found=f"'{name}' has {values} values beside {texts} texts in a row",
                where=f"columns `{TEXTS.name}` and `{name}`",
                do="read the texts that it was made of: read: {texts: NAME.texts}",
            )
        start_N = np.cumsum(count_N) - count_N
        place_T = np.arange(len(self.row_T)) - np.repeat(
            np.cumsum(self.count_N) - self.count_N, self.count_N
        )
        index_T = pa.array(start_N[self.row_T] + place_T, mask=~has_N[self.row_T])
        return pc.list_flatten(lists).take(index_T)

    def first(self, mask_T: Bools) -> NDArray[np.int64]:
        """Returns (N,) the index of each row's first text in the mask; -1 if there is none."""
        first_N = np.full(len(self.shard), -1)
        index = np.flatnonzero(mask_T)[::-1]
        first_N[self.row_T[index]] = index  # the last write wins: the first text
        return first_N

    def best(self, mask_T: Bools) -> NDArray[np.int64]:
        """Returns (N,) the index of a row's best-scored text, the first of equals; or -1."""
        index = np.flatnonzero(mask_T)
        score = np.where(np.isnan(self.score_T[index]), -np.inf, self.score_T[index])
        index = index[np.argsort(-score, kind="stable")]
        best_N = np.full(len(self.shard), -1)
        best_N[self.row_T[index[::-1]]] = index[::-1]
        return best_N


def ask(
    conjuncts: Sequence[sql.Conjunct], lists: Sequence[str], texts: Texts, broken: Broken
) -> None:
    """Applies the conditions of `where`: a text breaks a false one, or one that lacks a value."""
    words = pl.Series(texts.part["text"]).str.count_matches(r"\S+")
    columns = {**texts.part, WORDS: words.to_arrow()}
    columns |= {name: texts.beside(name) for name in lists}
    frame = sql.as_frame(pa.table(columns))
    for rule in conjuncts:
        truth = sql.truth(rule, frame)
        broken.add((~truth).fill_null(False).to_numpy(), rule.text)
        for column in rule.columns:
            missing = truth.is_null() & frame[column].is_null()
            broken.add(missing.to_numpy(), f"undefined:{column}")
        broken.add(truth.is_null().to_numpy(), "undefined")


def compare(cuts: Mapping[str, float], texts: Texts, broken: Broken) -> None:
    """Compares each text's score with the cut of its source, else with that of its label."""
    score_T, has_cut_T = texts.score_T, np.zeros(len(texts.row_T), bool)
    for part in ("source", "label"):
        for name, least in cuts.items():
            has_name_T = pc.equal(texts.part[part], name).fill_null(False).to_numpy(False)
            has_name_T &= ~has_cut_T
            broken.add(has_name_T & np.isnan(score_T), f"undefined:{TEXT_CLIP_SCORE.name}")
            broken.add(has_name_T & (score_T < np.float32(least)), f"cut:{name}")
            has_cut_T |= has_name_T


Mix = Literal["blip2", "short-synthetic", "veclip", "laclip", "metaclip-1.2"]
SHARES = MappingProxyType({"blip2": 0.3, "short-synthetic": 0.45, "metaclip-1.2": 0.15})


def mixed_texts(
    mix: Mix | None,
    texts: Texts,
    passes_T: Bools,
    made_T: Bools,
    takes_made_N: Bools,
    least: float,
) -> Bools:
    """Returns (T,) whether a mix keeps each text, among those that pass.

    `made_T` marks texts that it may take in the original's place, `takes_made_N` rows that take one
    with a score of at least `least`; other rows take their own, or a made one if their own does not
    pass.
    """
    if mix in (None, "laclip"):
        return passes_T
    own_N, made_N = texts.first(passes_T & texts.original_T), texts.best(passes_T & made_T)
    if mix == "veclip":
        chosen = np.concatenate([own_N, made_N])
    else:
        if least > -np.inf:
            score_N = np.append(texts.score_T, np.float32(np.nan))[made_N]  # -1: NaN, no text
            made_N = np.where(score_N >= np.float32(least), made_N, -1)
        chosen = np.where(takes_made_N, made_N, np.where(own_N >= 0, own_N, made_N))
    kept_T = np.zeros(len(passes_T), bool)
    kept_T[chosen[chosen >= 0]] = True
    return kept_T


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The least and the greatest value that pass."""

    least: float = -inf
    most: float = inf


# By value column; verdicts count as 0 and 1. The first failed cut, in this order, is the reason.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "text_words": Cut(least=1),
        "text_is_refusal": Cut(most=0),
        "text_garbled": Cut(most=0),
        "text_repetition": Cut(most=0.1),
        "text_prompt_leak": Cut(most=0.1),
        "text_has_disclaimer": Cut(most=0),
        "text_markup": Cut(most=0),
        "text_foreign": Cut(most=0.5),
        "text_copy_ratio": Cut(most=0.85),
        "text_invented": Cut(most=0),
        "text_is_cut": Cut(most=0),
    }
)


def first_failed(values: Mapping[str, pa.Array], cuts: Mapping[str, Cut]) -> pa.Array:
    """Returns the column of the first cut that each text fails; null if it passes all.

    `values` are flat, one per text; a cut whose column is missing is skipped.
    """
    named = [name for name in cuts if name in values]
    failed = []
    for name in named:
        value = values[name]
        if value.type != pa.float32():  # a float32 0.1 is at a cut of 0.1, not above it
            value = value.cast(pa.float64())
        value_N = value.to_numpy(zero_copy_only=False)  # a null is NaN, which fails nothing
        failed.append(pa.array((value_N < cuts[name].least) | (value_N > cuts[name].most)))
    return pc.case_when(pc.make_struct(*failed), *named)
