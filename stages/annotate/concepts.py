"""Matches captions with a list of concepts."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.concepts.load import ConceptList
from clipmill.metadata.schema import (
    CONCEPT_IDS,
    CONCEPT_LIST,
    LANGUAGE,
    REASON,
    REASON_TYPE,
    TEXT,
    Column,
)
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import NonEmpty, RowFunction, RowStage, Worker
from clipmill.stages.ops.concepts import concept_list
from clipmill.stages.ops.outside import need_file


@dataclass(frozen=True, kw_only=True)
class Concepts(RowStage):
    """List positions of every concept in the caption, ascending, distinct; null without a caption.

    `concept_list` is the digest of the list, which identifies it to select.balance.
    The rules of spacing are in stages/annotate/_spacing.py.

    Source: MetaCLIP (Xu et al. 2024), section 3.2; `metaclip2` is the rule of MetaCLIP 2 (Chuang et
    al. 2025), with `by_language` for its lists, one a language.
    Error: none: matches by hash are compared by characters. If a rule makes concepts equal (`The`
    and `the` under `words`), the first in the list represents all.
    Example: {after: [ingest.datacomp], concepts: concepts.parquet}
    """

    # the list: Parquet of `clipmill concepts build`, or MetaCLIP's published JSON
    concepts: NonEmpty
    digest: NonEmpty | None = None  # expected digest of the list; a new one matches anew
    # matching rule: as MetaCLIP, as MetaCLIP 2, or at borders of words
    rule: Literal["metaclip", "metaclip2", "words"] = "metaclip"
    by_language: bool = False  # match a caption with the concepts of its own language only

    version = 1
    determinism = "exact"
    batch_rows = 4096
    writes = (CONCEPT_IDS, CONCEPT_LIST)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (TEXT, LANGUAGE) if self.by_language else (TEXT,)

    @property
    def reasons(self) -> tuple[str, ...]:
        of_language = ("no_language", "no_list") if self.by_language else ()
        return ("no_text", "empty_text", *of_language, "no_concept")

    def look(self) -> None:
        need_file(self.concepts, "concepts", "make a list with `clipmill concepts build`")

    def open(self, worker: Worker) -> RowFunction:
        concepts = concept_list(self.concepts, where=f"stage '{worker.stage}', key `concepts`")
        if self.digest not in (None, concepts.digest):
            raise StageError(
                found=f"the list's digest is {concepts.digest}, not {self.digest}",
                where=f"stage '{worker.stage}', key `digest`: {self.concepts}",
                do="bring back that list; or change the key, and captions are matched anew",
            )
        worker.pin("the concept list", concepts.digest)
        lists = Lists(concepts, self.rule, self.by_language)
        return partial(matched, by_language=self.by_language, lists=lists)


class Lists:
    """The concepts to match, by language or for all; a finder is built when first used."""

    def __init__(self, concepts: ConceptList, rule: str, by_language: bool) -> None:
        self.digest, self.rule = concepts.digest, rule
        self.ids: dict[str | None, pa.Int32Array] = dict(concepts.by_language())
        if not by_language:
            self.ids = {None: pa.array(range(len(concepts)), pa.int32())}
        self.finder = cache(partial(finder_of, concepts.entries, self.ids, rule))  # no circle

    def concepts_of(self, texts: pa.StringArray, language: str | None = None) -> pa.ListArray:
        """Returns list positions of each text's concepts, ascending; empty without any."""
        from clipmill.stages.annotate._spacing import spaced

        count_N, place_M = self.finder(language).find(spaced(texts, self.rule))
        end_N = pa.array(np.append(0, np.cumsum(count_N)), pa.int32())
        return pa.ListArray.from_arrays(end_N, self.ids[language].take(pa.array(place_M)))


def finder_of(
    entries: pa.StringArray, ids: dict[str | None, pa.Int32Array], rule: str, language: str | None
):
    """Returns what finds a language's entries in texts."""
    from clipmill.stages.annotate._spacing import padded  # compiled: imported late
    from clipmill.stages.annotate._substrings import Finder

    return Finder(padded(entries.take(ids[language]), rule))


def matched(batch: pa.Table, *, by_language: bool, lists: Lists) -> pa.Table:
    """Returns the concepts of every caption, or a reason."""
    text = batch[TEXT.name].combine_chunks()
    undefined = {
        "no_text": text.is_null(),
        "empty_text": pc.equal(pc.utf8_trim_whitespace(text), ""),
    }
    if by_language:
        language = batch[LANGUAGE.name].combine_chunks()
        unlisted = pc.invert(pc.is_in(language, pa.array(lists.ids, pa.string())))
        undefined |= {"no_language": language.is_null(), "no_list": unlisted}
        ids = matched_by_language(text, language, lists)
    else:
        ids = lists.concepts_of(text)
    undefined["no_concept"] = pc.equal(pc.list_value_length(ids), 0)
    reason = pc.case_when(pc.make_struct(*undefined.values()), *undefined)
    return pa.table(
        {
            CONCEPT_IDS.name: pc.if_else(reason.is_null(), ids, None),
            CONCEPT_LIST.name: pc.if_else(reason.is_null(), lists.digest, None),
            REASON.name: reason.cast(REASON_TYPE),
        }
    )


def matched_by_language(
    text: pa.StringArray, language: pa.StringArray, lists: Lists
) -> pa.ListArray:
    """Returns each caption's concepts by its language's list; null without that list."""
    row_N, parts = np.empty(0, np.int64), [pa.nulls(0, CONCEPT_IDS.dtype)]
    for name in pc.unique(language).to_pylist():
        here = language.is_null() if name is None else pc.equal(language, name).fill_null(False)
        rows = np.flatnonzero(here)
        row_N = np.append(row_N, rows)
        if name is not None and name in lists.ids:
            parts.append(lists.concepts_of(text.take(pa.array(rows)), name))
        else:
            parts.append(pa.nulls(len(rows), CONCEPT_IDS.dtype))
    return pa.concat_arrays(parts).take(pa.array(np.argsort(row_N)))
