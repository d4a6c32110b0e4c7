"""What the filter network's score is worth on drawings of a vendor that it has never seen.

    python -m tests.benchmarks.filter_abroad [full | POOL [FOLDER]]    a drawn pool, fewer lines

One vendor after another, or family of vendors with one style, is left out of the trusted pairs and
of the pool's English rows. The network learns from the others, faults and all, and scores the
left-out one's rows: AUC of its fault-free rows over its planted faults. `kept` is the share of
fault-free rows above the cut that keeps 70 % of them at home, where nothing is left out. The other
columns are of swapped captions: `trusted`, where the network learns from trusted pairs alone;
`own`, where it learns from the left-out vendor's own fault-free rows, five folds by picture: what
the features could tell; and `learnt`, where nothing is left out, not even the faults themselves.
Features stay in FOLDER. The packages of demo's pool, which `full` takes, must be there: trusted
pairs are drawn again, since no pool says whose they are.

A second table learns from some of the rows, by hash: how a row learnt from scores beside another
fault-free one, and which swapped captions stand above the cut that keeps 70 % of all rows.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from clipmill.pipeline.pools.evaluation import evaluation_captions
from clipmill.pipeline.pools.faults import HARMLESS_LINKS
from clipmill.pipeline.pools.sources import noto, packages
from clipmill.pipeline.pools.trusted import TrustedPair, trusted_pairs, write_trusted
from clipmill.stages.models import filter_network as fn
from clipmill.stages.models.features import ImageFeatures
from clipmill.stages.models.text_features import TextFeatures
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.opened import ImageError
from clipmill.stages.train.filter_network import TrainedFilterNetwork
from tests.benchmarks.pools import VENDORS, auc, drawn, there, vendor_of
from tests.benchmarks.side_by_side import begin
from tests.benchmarks.toy import scratch

# Shapes: N rows, D width of features.

FAMILIES = {
    "twemoji": ("@twemoji/svg", "emoji-datasource-twitter"),
    "emojione": ("@iconify-json/emojione", "@iconify-json/emojione-v1"),
    "gimp-help": tuple(f"gimp-help-{language}" for language in ("en", "de", "fr", "ja", "ru")),
}
FOLDS, KEPT_AT_HOME, ROWS = 5, 0.7, 1_200
LEARNT_SHARES = 0.0625, 0.25, 0.5
ASIDE = ("trusted", "own", "learnt")
FAULTS = ("swapped", "other group", "own group", "spam", "boilerplate", "garbled")
TWICE = ("good", ("",), 200), ("good", ("",), 2_000), ("swapped", FAULTS[1:3], 200)
Score = Callable[[NDArray, NDArray, list[str]], NDArray[np.floating]]  # features, captions


class Pairs(NamedTuple):
    """Images with a caption, by uid, and what they show."""

    rows: pl.DataFrame  # uid, text, family, and for rows of the pool dup_cluster, fault
    image_ND: NDArray[np.float32]
    text_ND: NDArray[np.float32]

    def where(self, chosen_N: NDArray[np.bool_]) -> "Pairs":
        return Pairs(
            self.rows.filter(pl.Series(chosen_N)), self.image_ND[chosen_N], self.text_ND[chosen_N]
        )

    @property
    def captions(self) -> list[str]:
        return self.rows["text"].fill_null("").to_list()

    def of(self, family: str) -> NDArray[np.bool_]:
        return (self.rows["family"] == family).to_numpy()


def main(pool: str = "", cache: str = "") -> str:
    torch.set_num_threads(1)
    if pool:
        return compare(there(pool), Path(cache or Path(pool).parent / "filter_abroad"), True)
    with scratch() as folder:
        return compare(drawn(folder / "pool", ROWS), folder / "features", False)


def compare(pool: Path, cache: Path, every: bool) -> str:
    """AUC of swapped captions abroad and at home; prints a line of each family, or of one."""
    cache.mkdir(parents=True, exist_ok=True)
    trusted = with_features(trusted_of(pool, cache), cache / "trusted.npz")
    rows = with_features(rows_of(pool), cache / "rows.npz")
    both = joined(trusted, rows)
    home = [it for it in families(rows) if trusted.of(it).any()]
    everywhere, by_trusted = scores(learnt(both), rows), scores(learnt(trusted), rows)
    good = (rows.rows["fault"] == "").to_numpy() & rows.rows["family"].is_in(home).to_numpy()
    cut = np.quantile(everywhere[good], 1 - KEPT_AT_HOME)
    print(f"{len(trusted.rows):,} trusted pairs of {', '.join(home)}; {len(rows.rows):,} rows\n")
    print("| left out | fault-free | swaps |", " | ".join((*FAULTS, "kept", *ASIDE)), "|")
    print("|---|" + "---:|" * (len(FAULTS) + len(ASIDE) + 3))
    table = []
    for family in families(rows) if every else sorted(set(families(rows)) - set(home))[:1]:
        here, of = rows.where(rows.of(family)), rows.of(family)
        score = scores(learnt(both.where(~both.of(family))), here)
        few = by_trusted[of]
        if family in home:
            few = scores(learnt(trusted.where(~trusted.of(family))), here)
        table.append(aucs(here, score))
        table[-1]["kept"] = float((score[(here.rows["fault"] == "").to_numpy()] > cut).mean())
        for name, other in zip(
            ASIDE, (few, own_folds(here, FOLDS if every else 2), everywhere[of]), strict=True
        ):
            table[-1][name] = aucs(here, other)["swapped"]
        print(line(family, here, table[-1]), flush=True)
    mean = {
        key: (np.nanmean(v), np.nanstd(v)) for key in table[0] for v in [[t[key] for t in table]]
    }
    print("| mean | | |", " | ".join(f"{it[0]:.3f}" for it in mean.values()), "|")
    print("| standard deviation | | |", " | ".join(f"{it[1]:.3f}" for it in mean.values()), "|")
    for family in home:
        here = rows.where(rows.of(family))
        print(line(f"{family}, nothing left out", here, aucs(here, everywhere[rows.of(family)])))
    print(line("all, nothing left out", rows, aucs(rows, everywhere)))
    print("\n| learnt from | above others | swapped kept, learnt from | swapped kept, others |")
    print("|---|---:|---:|---:|")
    for share in LEARNT_SHARES if every else LEARNT_SHARES[-1:]:
        print(partly_learnt(trusted, rows, share), flush=True)
    print("\n| trusted pairs beside the pool | swapped | of their vendors | of others |")
    print("|---|---:|---:|---:|")
    for vendors in ([], home, *([it] for it in home)) if every else ([],):
        print(beside_pool(trusted, rows, vendors), flush=True)
    print("\n| learnt from twice | above others alike | kept | others alike kept |")
    print("|---|---:|---:|---:|")
    for name, faults, count in TWICE if every else TWICE[:1]:
        print(learnt_twice(trusted, rows, name, faults, count), flush=True)
    abroad, at_home = np.mean([it["swapped"] for it in table]), aucs(rows, everywhere)["swapped"]
    return f"AUC of swapped captions {abroad:.2f} abroad, {at_home:.2f} at home"


def partly_learnt(trusted: Pairs, rows: Pairs, share: float) -> str:
    """A line of how rows learnt from stand beside the others."""
    coins = (hashlib.blake2b(f"learnt {it}".encode()).digest()[0] for it in rows.rows["uid"])
    is_learnt = np.fromiter(coins, int) < 256 * share
    score = scores(learnt(joined(trusted, rows.where(is_learnt))), rows)
    fault = rows.rows["fault"]
    good, swapped = (fault == "").to_numpy(), fault.is_in(FAULTS[1:3]).to_numpy()
    above = auc(score[good & is_learnt], score[good & ~is_learnt])
    is_kept = score > np.quantile(score, 1 - KEPT_AT_HOME)
    kept = (float(is_kept[swapped & of].mean()) for of in (is_learnt, ~is_learnt))
    return f"| {is_learnt.sum():,} | {above:.3f} | {' | '.join(f'{it:.3f}' for it in kept)} |"


def beside_pool(trusted: Pairs, rows: Pairs, vendors: list[str]) -> str:
    """A line of what trusted pairs of these vendors add to the pool's own rows."""
    given = trusted.where(trusted.rows["family"].is_in(vendors).to_numpy())
    score = scores(learnt(joined(given, rows)), rows)
    own = rows.rows["family"].is_in(vendors).to_numpy()
    parts = [np.ones(len(own), bool), own, ~own]
    found = [aucs(rows.where(it), score[it])["swapped"] if it.any() else np.nan for it in parts]
    told = " | ".join(f"{it:.3f}" for it in found)
    return f"| {len(given.rows):,} of {', '.join(vendors) or 'nobody'} | {told} |"


def learnt_twice(
    trusted: Pairs, rows: Pairs, name: str, faults: tuple[str, ...], count: int
) -> str:
    """A line of how rows of the pool that are trusted pairs too stand beside others alike."""
    alike = rows.rows["fault"].is_in(faults).to_numpy()
    twice = np.zeros(len(alike), bool)
    twice[np.random.default_rng(0).permutation(np.flatnonzero(alike))[:count]] = True
    score = scores(learnt(joined(trusted, rows.where(twice), rows)), rows)
    above = auc(score[twice], score[alike & ~twice])
    is_kept = score > np.quantile(score, 1 - KEPT_AT_HOME)
    kept = (float(is_kept[it].mean()) for it in (twice, alike & ~twice))
    return f"| {count:,} {name} | {above:.3f} | {' | '.join(f'{it:.3f}' for it in kept)} |"


def joined(*parts: Pairs) -> Pairs:
    return Pairs(
        pl.concat([it.rows.select("uid", "text", "family") for it in parts]),
        np.concatenate([it.image_ND for it in parts]),
        np.concatenate([it.text_ND for it in parts]),
    )


def line(name: str, here: Pairs, values: dict[str, float]) -> str:
    fault = here.rows["fault"]
    counts = f"{(fault == '').sum():,} | {fault.is_in(FAULTS[1:3]).sum():,}"
    return f"| {name} | {counts} | " + " | ".join(f"{it:.3f}" for it in values.values()) + " |"


def families(rows: Pairs) -> list[str]:
    return rows.rows["family"].unique(maintain_order=True).sort().to_list()


def family_expr() -> pl.Expr:
    return pl.col("source").map_elements(family_of, pl.String).alias("family")


def family_of(source: str) -> str:
    of = (name for name, sources in FAMILIES.items() if source in sources)
    return next(of, source.removeprefix("@iconify-json/"))


def trusted_of(pool: Path, cache: Path) -> pl.DataFrame:
    """uid, text, family and file of the pool's trusted pairs, drawn below the cache.

    Of a pool drawn here they are as if two vendors'.
    """
    facts = json.loads((pool / "pool.json").read_text())
    if facts["kind"] == "generated":
        given = pl.read_parquet(pool / "trusted/metadata/*.parquet")
        file = pl.col("url").map_elements(partial(file_of, pool), pl.String)
        of_two = given.with_columns(source=vendor_of("uid"), file=file)
        of_two = of_two.filter(pl.col("source").is_in(VENDORS[:2])).sort("uid")
        return of_two.select("uid", "text", family_expr(), "file")
    evaluation, _ = noto.evaluation()
    forbidden = frozenset(it for drawing in evaluation for it in evaluation_captions(drawing))
    drawings, _ = packages.drawings(facts["kind"], lambda *_: None)
    pairs = trusted_pairs(drawings, packages.TRUSTED, 2_000, forbidden, facts["seed"])
    return pl.DataFrame([row for pair in pairs for row in written(pair, cache)]).sort("uid")


def written(pair: TrustedPair, folder: Path) -> list[dict[str, str]]:
    record = write_trusted(pair, folder, 0)
    if record is None:
        return []
    file = str(folder / str(record["url"]).split("/", 3)[3])
    family = family_of(pair.drawing.source)
    return [{"uid": pair.uid, "text": pair.text, "family": family, "file": file}]


def rows_of(pool: Path) -> pl.DataFrame:
    """The English rows whose picture is as it should be: uid, text, family, file, fault."""
    truth = pl.read_parquet(pool / "truth.parquet")
    link, issue = pl.col("link_issue"), pl.col("text_issue")
    swapped = pl.when("swapped_in_group").then(pl.lit("own group")).otherwise(pl.lit("other group"))
    rows = truth.filter(
        pl.col("image_issue").is_null(),
        link.is_null() | link.is_in(list(HARMLESS_LINKS)),
        ~pl.col("eval_near"),
        (pl.col("lang") == "en") | (issue == "boilerplate"),  # which is in no language
    ).join(pl.read_parquet(pool / "metadata/*.parquet"), on="uid")
    return rows.select(
        "uid",
        "text",
        "dup_cluster",
        family=family_expr(),
        file=pl.col("url").map_elements(partial(file_of, pool), pl.String),
        fault=pl.when(issue == "swapped").then(swapped).otherwise(issue.fill_null("")),
    ).sort("uid")


def file_of(pool: Path, url: str) -> str:
    path = url.split("/", 3)[3]
    site, _, rest = path.partition("/")
    there = pool / "www" / path
    return str(there if there.exists() else pool / "www" / site / "moved" / rest)


def with_features(rows: pl.DataFrame, stored: Path) -> Pairs:
    """The rows whose picture decodes, with embed.features' vectors; computed once."""
    if not stored.exists():
        files = rows["file"].to_list()
        parts = [files[start : start + 1024] for start in range(0, len(files), 1024)]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
            image_ND = np.concatenate(list(processes.map(image_features, parts)))
        text_ND = TextFeatures("bfloat16")(rows["text"].fill_null("").to_list())
        np.savez(stored, image=image_ND, text=text_ND.astype(np.float16))
    with np.load(stored) as found:
        image_ND, text_ND = (found[key].astype(np.float32) for key in ("image", "text"))
    return Pairs(rows, image_ND, text_ND).where(np.isfinite(image_ND).all(axis=1))


def image_features(files: list[str]) -> NDArray[np.float16]:
    network = ImageFeatures("bfloat16")
    feature_ND = np.full((len(files), network.width), np.nan, np.float16)
    for start in range(0, len(files), 128):
        images = {}
        for number, file in enumerate(files[start : start + 128], start):
            try:
                images[number] = decode(Path(file).read_bytes())
            except ImageError:
                continue
        if images:
            feature_ND[list(images)] = network(list(images.values()))
    return feature_ND


def learnt(pairs: Pairs) -> Score:
    """The score of a network that has learnt from these pairs as train.filter_network does."""
    width = TrainedFilterNetwork().width
    network = fn.fitted(pairs.image_ND, pairs.text_ND, pairs.captions, width)

    def score(image_ND: NDArray, text_ND: NDArray, captions: list[str]) -> NDArray[np.floating]:
        with torch.inference_mode():
            image = network.embed_images(torch.tensor(image_ND))
            return (image * network.embed_texts(torch.tensor(text_ND), captions)).sum(1).numpy()

    return score


def own_folds(here: Pairs, folds: int) -> NDArray[np.floating]:
    """Scores of each fold by heads learnt from the fault-free rows of the other four."""
    digests = (hashlib.blake2b(it.encode()).digest()[0] for it in here.rows["dup_cluster"])
    fold_N = np.fromiter(digests, int) % folds
    good_N = (here.rows["fault"] == "").to_numpy()
    out_N = np.empty(len(fold_N))
    for fold in range(folds):
        score = learnt(here.where(good_N & (fold_N != fold)))
        out_N[fold_N == fold] = scores(score, here.where(fold_N == fold))
    return out_N


def scores(score: Score, rows: Pairs) -> NDArray[np.floating]:
    captions = rows.captions
    parts = (slice(start, start + 1024) for start in range(0, len(captions), 1024))
    return np.concatenate(
        [score(rows.image_ND[it], rows.text_ND[it], captions[it]) for it in parts]
    )


def aucs(here: Pairs, score_N: NDArray[np.floating]) -> dict[str, float]:
    """By fault, how often a fault-free row's score is above a faulty one's."""
    fault_N = here.rows["fault"].to_numpy()
    kinds = {"swapped": FAULTS[1:3]}
    good = score_N[fault_N == ""]
    return {it: auc(good, score_N[np.isin(fault_N, kinds.get(it, (it,)))]) for it in FAULTS}


if __name__ == "__main__":
    begin(main, full=("demo/pool",))
