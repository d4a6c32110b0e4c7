"""Keeps the texts of a row that pass every rule, mixed with the original."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from clipmill.metadata.schema import (
    CAPTIONS,
    IDENTITY,
    KEEP,
    TEXT,
    TEXT_CLIP_SCORE,
    TEXT_FIELDS,
    TEXT_IMAGES,
    TEXTS,
    UID,
    Column,
)
from clipmill.metadata.uid import coin
from clipmill.pipeline.dataset import Context, Inputs, Shards, State
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, Share
from clipmill.stages.ops.tables.rows import dropped_before, with_reason
from clipmill.stages.ops.texts.lists import listed
from clipmill.stages.select import _cut as cut
from clipmill.stages.select import _sql as sql
from clipmill.stages.select._captions import (
    CUTS,
    GBC,
    SHARES,
    WORDS,
    Bools,
    Broken,
    Mix,
    Texts,
    ask,
    compare,
    first_failed,
    mixed_texts,
)
from clipmill.stages.select._top import Top, rankable, reaching, search

# Shapes: N rows, T texts of all of them.

Cosine = Annotated[float, Meta(ge=-1, le=1)]
TEXT_SCORES = Column(
    "text_scores", pa.list_(pa.float32()), "cosine, -1 to 1", "CLIP scores of the texts that stay."
)
TEXT_REASONS = Column(
    "text_reasons", pa.list_(pa.string()), "code", "Of each text that was read: null stays."
)
FELL_BACK = Column(
    "fell_back", pa.bool_(), "verdict", "Whether the original stays for want of what the rules ask."
)
WANTING = {
    TEXTS.name: "let score.caption come before it, which writes it",
    TEXT_CLIP_SCORE.name: "let score.caption come before it, with `model`, which writes it",
}


@dataclass(frozen=True, kw_only=True)
class SelectCaptions(DatasetStage):
    """Texts of each row that pass every rule, in their order (`texts`); null if none can stay.

    A made text must pass `most_images` and the checks of score.caption whose values are present;
    every text must pass `where` and its cut. text_reasons gives for each text that was read the
    first rule it breaks: a check by its column, `where` by its condition, `cut:LABEL`,
    `most_images`, `mix:NAME`; `undefined:COLUMN` for a missing value. A row with an original never
    loses all texts: the original stays, and fell_back is true. Without an original it goes null
    (`none_passes`). No row is dropped: `select.where` with `NOT fell_back` does that.

    `mix` chooses among the texts that pass. `blip2`: the `share` of rows whose original scores
    highest keep it; the others take their best made text if its score reaches the lowest of those.
    `short-synthetic` and `metaclip-1.2`: a `share` of the rows, by hash, take their best made text,
    the others their original. `veclip`: the original and the best made text; the trainer alternates
    between them. `laclip`: all; the trainer draws one each time.

    Source: Nguyen et al. (2023); Lai et al. (2024), 40 to 50 % short; VeCLIP; LaCLIP; MetaCLIP 1.2;
    GBC's published cuts. Departs: where blip2 leaves a row out, the original stays, as fell_back;
    short-synthetic and metaclip-1.2 draw once a row, not at each step.
    Error: none; a float32 score at its cut stays, the next smaller goes. Which made text is best
    goes by text_clip_score; without one it is the first.
    Example: {after: [ingest.datacomp, caption.rewrite, score.caption]}
    """

    # caption lists to choose from beside the pool's caption, as `stage.captions`; default: the
    # `texts` of score.caption, with their values
    captions: tuple[NonEmpty, ...] = ()
    where: NonEmpty | None = None  # per text: text_clip_score >= 0.2 AND label <> 'long'
    # the least text_clip_score by source or label: {original: 0.25, short: 0.23}; or gbc, as
    # published for DFN5B-H-378
    cuts: Literal["gbc"] | dict[NonEmpty, Cosine] | None = None
    # drop made texts that fail a check of score.caption: true for all checks, or the names of some
    # (a text made from the image may have numbers that text_invented does not know)
    checks: bool | tuple[NonEmpty, ...] = True
    most_images: OneUp | None = None  # most different images that may share one made text
    # paper whose mix chooses among the texts that pass
    mix: Mix | None = None
    # share of rows that keep their original (blip2: 0.3), or take a made text (0.45, 0.15)
    share: Share | None = None
    # sources or labels that a mix takes; default: all but the original (short-synthetic: `short`)
    made: tuple[NonEmpty, ...] = ()

    version = 1
    determinism = "exact"
    writes = (TEXTS, TEXT_SCORES, TEXT_REASONS, FELL_BACK)
    reasons = ("no_text", "none_passes")

    def __post_init__(self) -> None:
        if self.where:
            sql.conjuncts(self.where)  # raises RecipeError if it is not valid
        unknown = [name for name in self.checked if name not in CUTS]
        if unknown:
            found = f"`checks` names '{unknown[0]}', which is no check"
            raise RecipeError(found, "key `checks`", f"name some of: {', '.join(CUTS)}")
        judges = self.cuts is not None or self.mix == "blip2" or self.most_images or self.lists
        if self.captions and judges:
            found = "a rule asks values of texts, and `captions` names texts that have none"
            do = "leave it out, and let score.caption come before, which has `captions`, too"
            raise RecipeError(found, "key `captions`", do)
        if self.share is not None and self.mix not in SHARES:
            do = f"write a mix that has one: {', '.join(SHARES)}"
            raise RecipeError(f"`share` is not of mix: {self.mix}", "key `share`", do)
        if self.made and self.mix in (None, "laclip"):
            found = f"`made` says what a mix takes, and mix is {self.mix}"
            raise RecipeError(found, "key `made`", "leave it out, or ask `source` in `where`")

    @property
    def conjuncts(self) -> tuple[sql.Conjunct, ...]:
        return sql.conjuncts(self.where) if self.where else ()

    @property
    def checked(self) -> tuple[str, ...]:
        """Returns the check columns: all, or those that `checks` names."""
        every = tuple(CUTS) if self.checks else ()
        return self.checks if isinstance(self.checks, tuple) else every

    @property
    def lists(self) -> tuple[str, ...]:
        """Returns the list columns that `where` reads."""
        names = [name for conjunct in self.conjuncts for name in conjunct.columns]
        return tuple(dict.fromkeys(n for n in names if n not in (*TEXT_FIELDS, WORDS)))

    @property
    def reads(self) -> tuple[Column | str, ...]:
        if self.captions:
            return (TEXT, *(replace(CAPTIONS, name=name) for name in self.captions))
        scored = self.cuts is not None or self.mix == "blip2"
        needed: list[Column | str] = [TEXTS]
        needed += [TEXT_CLIP_SCORE] if scored else []
        needed += [TEXT_IMAGES] if self.most_images else []
        needed += self.checked if isinstance(self.checks, tuple) else ()
        return (*needed, *self.lists)

    @property
    def optional_reads(self) -> tuple[Column | str, ...]:
        return (KEEP,) if self.captions else (KEEP, TEXT_CLIP_SCORE, *self.checked)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Checks that `where` can be evaluated on its columns, which are lists beside the texts."""
        for name in self.lists:
            if not pa.types.is_list(types[name]):
                raise StageError(
                    found=f"column '{name}' holds {types[name]}, and no list beside the texts",
                    where="key `where`",
                    do=f"ask what score.caption writes, or {', '.join((*TEXT_FIELDS, WORDS))}",
                )
        flat = {name: pa.nulls(0, types[name].value_type) for name in self.lists}
        flat |= {name: pa.nulls(0, pa.string()) for name in TEXT_FIELDS}
        flat[WORDS] = pa.nulls(0, pa.int32())
        for conjunct in self.conjuncts:
            sql.check(conjunct, pa.table(flat))

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Returns advice to run score.caption first, for a column that it writes; else ""."""
        return WANTING.get(column, "")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Returns the sources or labels of which a mix takes texts; none if it takes all."""
        return self.made or (("short",) if self.mix == "short-synthetic" else ())

    def run(self, inputs: Inputs, ctx: Context) -> None:
        if self.wanted and len(inputs.rows):
            ctx.say("looking for the texts that the mix takes")
            found = ctx.reduce(partial(made_names, self.captions), inputs.rows, united)
            self.refuse_strangers(found["names"].tolist(), ctx.worker.stage)
            ctx.say("")
        lowest, least = cut.NOTHING, -np.inf
        if self.mix == "blip2" and len(inputs.rows):
            rows = ctx.map_shards(partial(originals, self), inputs.rows)
            lowest, least = self.highest(rows, ctx)
        chosen = partial(judged, self, ctx.worker.seed, ctx.worker.stage, lowest, least)
        ctx.restore(ctx.map_shards(chosen, inputs.rows))

    def refuse_strangers(self, known: list[str], stage: str) -> None:
        """Raises StageError if the mix takes no source or label of made texts, if any exist."""
        for name in self.wanted:
            if known and name not in known:
                found = f"no text has the source or label '{name}'"
                do = did_you_mean(name, known, "those of made texts are")
                raise StageError(found, f"stage '{stage}', key `made`", do)

    def highest(self, rows: Shards, ctx: Context) -> tuple[cut.Cut, float]:
        """Returns the rank from which rows keep their original, and the least score of these."""
        ctx.say("cutting at the share of the originals")
        top = Top(column=TEXT_CLIP_SCORE.name, fraction=self.share or SHARES["blip2"])
        lowest = cut.solve(search(top), rows, ctx)
        least = ctx.reduce(partial(least_above, lowest), rows, lower)["least"]
        ctx.say("")
        return lowest, float(least)


def made_names(captions: tuple[str, ...], shard: pa.Table) -> State:
    """Returns sources and labels of the made texts."""
    texts = Texts(shard, captions)
    made = pa.array(~texts.original_T)
    names = [texts.part[part].filter(made).drop_null() for part in ("source", "label")]
    return {"names": np.array(pc.unique(pa.concat_arrays(names)).to_pylist(), str)}


def united(left: State, right: State) -> State:
    return {"names": np.union1d(left["names"], right["names"])}


def originals(stage: SelectCaptions, shard: pa.Table) -> pa.Table:
    """Returns the rows' identity, the score of their original, and whether it is ranked."""
    texts = Texts(shard, stage.captions)
    own_N = texts.first(texts.original_T)
    score_N = np.append(texts.score_T, np.float32(np.nan))[own_N]  # -1 reads the NaN: no original
    keep = pc.and_(pc.invert(dropped_before(shard)), pa.array(own_N >= 0))
    rows = shard.select(IDENTITY).append_column(KEEP.name, keep)
    return rows.append_column("value", rankable(pa.chunked_array([pa.array(score_N)])))


def is_above(rows: pa.Table, lowest: cut.Cut) -> Bools:
    """Returns (N,) whether a row is among those with the highest scores."""
    ranked_N = rows["value"].is_valid().to_numpy() & rows[KEEP.name].to_numpy()
    return ranked_N & reaching(rows, lowest)


def least_above(lowest: cut.Cut, rows: pa.Table) -> State:
    value_N = rows["value"].to_numpy()[is_above(rows, lowest)]
    return {"least": np.array(value_N.min(initial=np.float32(np.inf)))}


def lower(left: State, right: State) -> State:
    return {"least": np.minimum(left["least"], right["least"])}


def judged(
    stage: SelectCaptions, seed: int, name: str, lowest: cut.Cut, least: float, shard: pa.Table
) -> pa.Table:
    """Returns the stored columns of every row."""
    texts = Texts(shard, stage.captions)
    broken = broken_rules(stage, texts)
    reason_T, passes_T, made_T = broken.reason_T, broken.passes_T, ~texts.original_T
    if stage.wanted:
        names = pa.array(stage.wanted, pa.string())
        is_named = pc.or_(*(pc.is_in(texts.part[part], names) for part in ("source", "label")))
        made_T &= is_named.to_numpy(False)
    if stage.mix == "blip2":
        takes_made_N = ~is_above(originals(stage, shard), lowest)
    else:
        coin_N = coin(shard[UID.name], seed=seed, stage=name, purpose="mix")
        takes_made_N = coin_N < (stage.share or SHARES.get(stage.mix or "", 0))
    kept_T = mixed_texts(stage.mix, texts, passes_T, made_T, takes_made_N, least)
    reason_T[passes_T & ~kept_T] = f"mix:{stage.mix}"
    own_N = texts.first(texts.original_T)
    fell_back_N = (np.bincount(texts.row_T[kept_T], minlength=len(shard)) == 0) & (own_N >= 0)
    kept_T[own_N[fell_back_N]] = True
    reason_T[kept_T] = None
    kept = np.flatnonzero(kept_T)
    kept_N = np.bincount(texts.row_T[kept], minlength=len(shard))
    why = pc.make_struct(pa.array(texts.count_N == 0), pa.array(kept_N == 0))
    made = {
        TEXTS.name: listed(texts.values.take(pa.array(kept)), kept_N),
        TEXT_SCORES.name: listed(texts.scores.take(pa.array(kept)), kept_N),
        TEXT_REASONS.name: listed(pa.array(reason_T, pa.string()), texts.count_N),
        FELL_BACK.name: pa.array(fell_back_N),
    }
    return with_reason(shard, made, pc.case_when(why, *SelectCaptions.reasons))


def broken_rules(stage: SelectCaptions, texts: Texts) -> Broken:
    """Returns the first rule that each text breaks."""
    broken, made_T = Broken(len(texts.row_T)), ~texts.original_T
    broken.add(texts.part["text"].is_null().to_numpy(False), "undefined:text")
    present = {name: CUTS[name] for name in stage.checked if name in texts.shard.column_names}
    if present:
        failed = first_failed({name: texts.beside(name) for name in present}, present)
        for name in present:
            broken.add(made_T & pc.equal(failed, name).fill_null(False).to_numpy(False), name)
    if stage.conjuncts:
        ask(stage.conjuncts, stage.lists, texts, broken)
    compare(GBC if stage.cuts == "gbc" else stage.cuts or {}, texts, broken)
    if stage.most_images:
        images_T = texts.beside(TEXT_IMAGES.name).fill_null(0).to_numpy()
        broken.add(made_T & (images_T > stage.most_images), "most_images")
    return broken
