"""Writes evaluation sets in CLIP_benchmark's webdataset layout: a tar, an item a picture."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipmill.pipeline.pools.captions import with_tags
from clipmill.pipeline.pools.drawing import Drawing

TEMPLATES = ("{c}", "{c} emoji", "a picture of {c}", "a drawing of {c}")


@dataclass(frozen=True)
class EvaluationSet:
    """PNG pictures by key, with a class number or captions for retrieval by key."""

    name: str
    images: Mapping[str, bytes]
    classes: Mapping[str, int] = field(default_factory=dict)
    classnames: Sequence[str] = ()
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    templates: Sequence[str] = TEMPLATES

    @classmethod
    def retrieval(cls, name: str, drawings: Sequence[Drawing]) -> "EvaluationSet":
        """Makes a retrieval set: two captions a picture, label, and label with tags."""
        return cls(
            name,
            {drawing.key: drawing.image for drawing in drawings},
            captions={drawing.key: evaluation_captions(drawing) for drawing in drawings},
        )

    @classmethod
    def one_each(cls, name: str, drawings: Sequence[Drawing]) -> "EvaluationSet":
        """Makes a set in which each picture is a class, named by its English label."""
        return cls(
            name,
            {drawing.key: drawing.image for drawing in drawings},
            {drawing.key: number for number, drawing in enumerate(drawings)},
            [drawing.words["en"].label for drawing in drawings],
        )

    def with_more(self, drawings: Sequence[Drawing]) -> "EvaluationSet":
        """Returns the set with a second picture of each class whose key a drawing has."""
        images, classes = dict(self.images), dict(self.classes)
        for drawing in drawings:
            if drawing.key in self.classes:
                images[f"{drawing.key}_v1"] = drawing.image
                classes[f"{drawing.key}_v1"] = self.classes[drawing.key]
        return replace(self, images=images, classes=classes)


def evaluation_captions(drawing: Drawing) -> list[str]:
    """Returns a drawing's retrieval captions; no trusted pair may have one of them."""
    english = drawing.words["en"]
    return list(dict.fromkeys((english.label, with_tags(english))))


def write_set(evaluation: EvaluationSet, folder: Path) -> None:
    """Writes FOLDER/NAME: class names and templates if it has classes, and test/0.tar."""
    home = folder / evaluation.name
    (home / "test").mkdir(parents=True, exist_ok=True)
    if evaluation.classes:
        (home / "classnames.txt").write_text("\n".join(evaluation.classnames) + "\n")
        templates = home / "zeroshot_classification_templates.txt"
        templates.write_text("\n".join(evaluation.templates) + "\n")
    (home / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(home / "test" / "0.tar", "w") as tar:
        for key, image in sorted(evaluation.images.items()):
            _add(tar, f"{key}.png", image)
            if evaluation.classes:
                _add(tar, f"{key}.cls", str(evaluation.classes[key]).encode())
            else:
                _add(tar, f"{key}.txt", "\n".join(evaluation.captions[key]).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: equal bytes everywhere
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
