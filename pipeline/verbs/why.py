"""`clipmill why`: shows why samples were kept or lost, and what every stage stored for them."""

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import cut, one_line
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_variant, answered, opened

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.rows.captions import Texts
    from clipmill.pipeline.ledger.rows.pictures import PicturePlace
    from clipmill.pipeline.ledger.selection.verdict import Deciding
    from clipmill.pipeline.ledger.selection.why import Why

HELP = "why samples were kept or dropped, and what stages stored for them"
WIDTH = 80  # columns of a terminal
MOST = 400  # characters of a caption
EXAMPLES = """\
clipmill why 09cee89f --run run
clipmill why 09cee89f https://a.test/1.jpg "two red dogs" --run run
clipmill why 09cee89f --run run -v
clipmill why 09cee89f --run run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "samples",
        nargs="+",
        metavar="SAMPLE",
        help="a uid (32 hex digits, or the first 8 or more), a link, or a caption, its beginning"
        " or a part of it that only one has",
    )
    add_variant(parser)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="all that every stage stored, below"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the outcome of each sample; as JSON one object, or a list for several samples."""
    from clipmill.pipeline.ledger.selection.why import whys

    answers = whys(opened(options), options.samples)
    if options.json:
        return answered(answers if len(answers) > 1 else answers[0], options, str)
    print("\n\n".join(text(answer, options.verbose) for answer in answers))
    if not options.verbose:
        print("\n-v shows all that every stage stored")
    return DONE


def text(why: "Why", has_all: bool = False) -> str:
    """Returns a sentence for each outcome of the sample, with the deciding values below; then its
    place; with `has_all` a paragraph a stage."""
    from clipmill.metadata.schema import TEXT
    from clipmill.pipeline.ledger.selection.verdict import Deciding, where

    lines = [f"{why.uid}  ({where(why.shard, why.position)})"]
    if why.copies > 1:
        lines.append(f"this uid stands in {why.copies} rows; the first is shown")
    last = {(end.cause, end.reason) if end.cause else end.stage: end for end in why.ends}
    shown: set[Deciding] = set()  # a later select repeats earlier thresholds
    for end in last.values():  # of selects with one cause, the last
        rules = (rule for rule in end.deciding if rule not in shown)
        lines += [end.sentence, *(f"    {_beside(rule)}" for rule in rules)]
        shown |= {*end.deciding}
    captions = [row.values[TEXT.name] for row in why.stages if TEXT.name in row.values]
    lines += [f"caption: {one_line(captions[-1])}"] if captions and captions[-1] else []
    lines += [_texts(texts) for texts in why.captions if texts.chosen_by]
    lines += _picture(why.picture)
    lines += [f"exported by '{export.stage}' to {export.file}" for export in why.exported]
    return "\n".join([*lines, *(_stored(why) if has_all else [])])


def _texts(texts: "Texts") -> str:
    """Returns `texts: 1 of 2 stay in 'chosen'; left out: made by text_copy_ratio`."""
    gone = [item for item in texts.texts if item.reason]
    causes = ", ".join(f"{item.source or 'one'} by {one_line(item.reason)}" for item in gone)
    kept = f"texts: {len(texts.texts) - len(gone)} of {len(texts.texts)} stay"
    return f"{kept} in '{texts.chosen_by}'{f'; left out: {causes}' if gone else ''}"


def _beside(rule: "Deciding") -> str:
    """Returns `clip_score 0.241 is 0.039 below 0.28`, and the rank if one decided."""
    value, limit, apart = map(_number, (rule.value, rule.limit, abs(rule.apart)))
    direction = "above" if rule.apart > 0 else "below"
    words = f"{rule.column} {value} is {f'{apart} {direction}' if rule.apart else 'at'} {limit}"
    if rule.rank is None:
        return f"{words}; '{rule.stage}' keeps {rule.sign} {limit}"
    return (
        f"{words}, the least that '{rule.stage}' keeps; it ranks {rule.rank:,} of"
        f" {rule.ranked:,}, and {rule.kept:,} stay"
    )


def _number(number: float) -> str:
    if isinstance(number, int):  # a format of floats would round it
        return f"{number:,}"
    return f"{number:.6g}" if abs(number) < 1e6 else f"{number:,.0f}"


def _picture(picture: "PicturePlace") -> Iterator[str]:
    from clipmill.pipeline.run_folder.words import size

    if picture.file:
        yield f"picture: row {picture.row:,} of {picture.file}  ({size(picture.bytes or 0)})"
    if picture.url:
        yield f"link: {one_line(picture.url)}"


def _stored(why: "Why") -> Iterator[str]:
    """Yields a paragraph a stage with its values, then the captions."""
    from clipmill.pipeline.ledger.selection.verdict import caption, count, where
    from clipmill.pipeline.run_folder.words import in_words

    below = _shown_below(why)
    for row in why.stages:
        verdict = "fine" if row.reason is None else one_line(in_words(row.reason))
        yield from ("", f"{row.stage}  {row.uses}: {verdict}")
        stored = row.values.items()  # nulls of a failed stage are explained by its reason
        known = stored if row.reason is None else [pair for pair in stored if pair[1] is not None]
        for name, value in (pair for pair in known if pair[0] not in below):
            yield f"    {name:<22} {one_line(value)}"
        if keeper := row.keeper:
            place = where(keeper.shard, keeper.position)
            yield f"    {'which is':<22} {place}{caption(keeper)}"
        if row.keeper_of:
            yield f"    {'keeper of':<22} {count(row.keeper_of)}"
    for texts in why.captions:
        yield from ("", *_captions(texts))


def _shown_below(why: "Why") -> set[str]:
    """Returns the columns that are shown with each caption instead."""
    from clipmill.pipeline.ledger.rows.captions import LISTS

    values = {name for texts in why.captions for item in texts.texts for name in item.values}
    return {*values, *LISTS} if why.captions else set()


def _captions(texts: "Texts") -> Iterator[str]:
    """Yields each text with its source and verdict above, and its values below."""
    by = f", chosen by '{texts.chosen_by}'" if texts.chosen_by else ""
    yield f"captions of '{texts.stage}'{by}"
    if texts.fell_back:
        yield "none was good enough: back to the original"
    for number, item in enumerate(texts.texts, 1):
        origin: list[str | None] = [item.source or "of unknown source"]
        origin += [item.label] if item.label != item.source else []
        made = (("by", item.model), ("with", item.prompt_id))
        origin += [f"{name} {value}" for name, value in made if value]
        verdict = f"left out: {item.reason}" if item.reason else "kept" if texts.chosen_by else ""
        yield from _lines(
            f"{number:>2}  ", "; ".join(filter(None, [", ".join(filter(None, origin)), verdict]))
        )
        yield from _lines("      ", cut("none" if item.text is None else item.text, MOST))
        values = [
            f"{name.removeprefix('text_')} {_short(value)}" for name, value in item.values.items()
        ]
        yield from _lines("      ", ", ".join(values))


def _short(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _lines(before: str, text: str) -> list[str]:
    """Wraps a text to the terminal's width, with `before` in front and the other lines indented."""
    rest = " " * len(before)
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=before, subsequent_indent=rest
    )
