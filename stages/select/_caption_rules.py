"""Which rule a text breaks first: a check, `where`, its cut, the images that have it too."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import TEXT_CLIP_SCORE, TEXT_IMAGES
from clipmill.stages.ops.caption_cuts import CUTS, first_failed
from clipmill.stages.select import _sql as sql
from clipmill.stages.select._mixes import Bools
from clipmill.stages.select._texts import Texts

if TYPE_CHECKING:
    from clipmill.stages.select.captions import SelectCaptions

# Shapes: T texts of a shard.

WORDS = "words"  # what `where` calls the pieces between white space of a text
GBC = MappingProxyType(  # DFN5B-H-378's cosines
    {
        **{"original": 0.2497, "short": 0.2311, "long": 0.1917, "detailed": 0.1917},
        **{"relation": 0.1852, "composition": 0.1181, "short_composition": 0.1398},
        **{"detailed_entity": 0.1533},
    }
)


class Broken:
    """The first rule that each of T texts breaks."""

    def __init__(self, texts: int) -> None:
        self.passes_T = np.ones(texts, bool)
        self.reason_T = np.full(texts, None, object)

    def add(self, breaks_T: Bools, rule: str) -> None:
        """A rule, which those that broke one before have no need of."""
        self.reason_T[breaks_T & self.passes_T] = rule
        self.passes_T = self.passes_T & ~breaks_T


def broken_rules(stage: "SelectCaptions", texts: Texts) -> Broken:
    """The first rule that each text breaks."""
    broken, made_T = Broken(len(texts.row_T)), ~texts.original_T
    broken.add(texts.part["text"].is_null().to_numpy(False), "undefined:text")
    there = {name: CUTS[name] for name in stage.checked if name in texts.shard.column_names}
    if there:
        failed = first_failed({name: texts.beside(name) for name in there}, there)
        for name in there:
            broken.add(made_T & pc.equal(failed, name).fill_null(False).to_numpy(False), name)
    if stage.where:
        ask(stage, texts, broken)
    if stage.cuts is not None:
        compare(GBC if stage.cuts == "gbc" else stage.cuts, texts, broken)
    if stage.most_images:
        images_T = texts.beside(TEXT_IMAGES.name).fill_null(0).to_numpy()
        broken.add(made_T & (images_T > stage.most_images), "most_images")
    return broken


def ask(stage: "SelectCaptions", texts: Texts, broken: Broken) -> None:
    """The conditions of `where`: false, or null for want of a value."""
    words = pl.Series(texts.part["text"]).str.count_matches(r"\S+")
    held = {**texts.part, WORDS: words.to_arrow()}
    held |= {name: texts.beside(name) for name in stage.lists}
    frame = sql.as_frame(pa.table(held))
    for rule in stage.conjuncts:
        truth = sql.truth(rule, frame)
        broken.add((~truth).fill_null(False).to_numpy(), rule.text)
        for column in rule.columns:
            missing = truth.is_null() & frame[column].is_null()
            broken.add(missing.to_numpy(), f"undefined:{column}")
        broken.add(truth.is_null().to_numpy(), "undefined")


def compare(cuts: Mapping[str, float], texts: Texts, broken: Broken) -> None:
    """The score of each text with the cut of its source, else with that of its label."""
    score_T = texts.scores.to_numpy(False).astype(np.float32)
    has_cut_T = np.zeros(len(score_T), bool)
    for part in ("source", "label"):
        for name, least in cuts.items():
            is_its_T = pc.equal(texts.part[part], name).fill_null(False).to_numpy(False)
            is_its_T &= ~has_cut_T
            broken.add(is_its_T & np.isnan(score_T), f"undefined:{TEXT_CLIP_SCORE.name}")
            broken.add(is_its_T & (score_T < np.float32(least)), f"cut:{name}")
            has_cut_T |= is_its_T
