"""Shared parts of `init` and `curate`: arguments, questions to the user, the page on the data."""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.terminal import aligned, plural

if TYPE_CHECKING:
    import pyarrow as pa

    from clipmill.pipeline.own_data.data import UnsureError
    from clipmill.pipeline.own_data.start import Preview, Start

ROLES = {
    "url": "links",
    "caption": "captions",
    "image": "pictures, or paths of their files",
    "uid": "ids",
    "sha256": "pictures' SHA-256",
    "width": "pictures' width",
    "height": "pictures' height",
}
PLAIN = ("table", "keep", "score", "model")  # options that are no paths
FORMS = ("parquet", "webdataset", "huggingface")
ROLE_OF = {"no_url": "url", "no caption": "caption", "no_image": "image"}  # of a cause
HUB = re.compile(  # its pages, not `resolve/…`, which is a file
    r"https://huggingface\.co/datasets/([^/?]+/[^/?]+)/?((tree|viewer|blob)\b.*|\?.*)?$"
)
SHOWN = 5  # rows
CAUSES = {  # an ingest stage's reason, in words
    "no_url": "no link",
    "no_image": "no picture",
    "undecodable": "a broken picture",
    "unparsable": "a line that is no row",
    "bad_value": "a value that is not of its column's type",
    "bad_uid": "an id that is no 32 hex digits",
    "bad_embedding": "a vector of another width",
    "bad_caption": "a caption that is no UTF-8",
    "too_large": "a file that is too large",
    "unreadable": "a file that is gone or cannot be read",
    "outside": "a path that leads out of the folder",
    "hash_mismatch": "another SHA-256 than stated",
}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds `DATA`, options for its columns, and for the rows to keep."""
    parser.add_argument("data", metavar="DATA", help="a file, a folder, a glob or a URI")
    columns = parser.add_argument_group("columns of a table, where their names do not tell")
    for role, words in ROLES.items():
        columns.add_argument(f"--{role}", metavar="COLUMN", help=f"the {words}")
    columns.add_argument(
        "--pictures", metavar="FOLDER", help="where paths of pictures start (default: the table's)"
    )
    columns.add_argument("--table", metavar="NAME", help="of a database or workbook with several")
    selection = parser.add_argument_group("what is kept")
    selection.add_argument(
        "--keep", type=float, metavar="SHARE", help="the best share by a score: 0.3 is 30 %%"
    )
    selection.add_argument("--score", metavar="COLUMN", help="the score: a column of the data")
    selection.add_argument(
        "--model", metavar="MODEL", help="the score: by a model, open_clip:NAME/TAG or reference"
    )
    selection.add_argument(
        "--trusted", metavar="DATA", help="the score: learned from pairs whose captions fit"
    )
    selection.add_argument(
        "--captions",
        metavar="MODEL",
        help="more captions, by openai:URL#MODEL, gguf:FILE and others; auto: by the model that"
        " Ollama, vLLM or llama-server offers on this machine",
    )
    selection.add_argument(
        "--to",
        nargs="+",
        action="extend",
        choices=FORMS,
        help="forms of the export (default: parquet)",
    )


def one_data(data: str, more: Sequence[str], command: str) -> None:
    """Raises RecipeError for further files, as a shell makes them of a glob without quotes."""
    paths = [data, *more]
    if not all(map(os.path.exists, paths)):
        return
    folders = {os.path.dirname(path) for path in paths}
    suffixes = {os.path.splitext(path)[1] for path in paths}
    glob = os.path.join(*folders, f"*{''.join(suffixes)}") if len(folders) == 1 else ""
    do = "give one path: a folder, or a glob in quotes"
    if glob and len(suffixes) == 1:
        do = f"quote it: {command} {shlex.quote(glob)}"
    raise RecipeError(
        f"{len(paths):,} files: the shell wrote a glob out, or these are several", "DATA", do
    )


def started(
    options: argparse.Namespace, verb: str, recipe: Path, run_as: str, asks: bool
) -> "Start":
    """Identifies the data and makes a recipe; asks open questions on a terminal if `asks`.

    `recipe` is the file that will hold it.
    """
    from clipmill.pipeline.own_data.data import UnsureError
    from clipmill.pipeline.own_data.start import Request, start

    is_asked = asks and sys.stdin.isatty() and sys.stderr.isatty()
    while True:
        given = [path for path in (options.data, options.pictures, options.trusted) if path]
        request = Request(
            path=_whole_path(options.data),
            columns={role: getattr(options, role) for role in ROLES if getattr(options, role)},
            pictures=options.pictures and _whole_path(options.pictures),
            trusted=options.trusted and _whole_path(options.trusted),
            captions=options.captions,
            **{name: getattr(options, name) for name in PLAIN},
            to=tuple(dict.fromkeys(options.to or Request.to)),
            folder=os.path.abspath(recipe.parent),
            moving=frozenset(_whole_path(path) for path in given if _is_relative(path)),
        )
        try:
            return start(request, command(options, verb), run_as)
        except UnsureError as unsure:
            if not is_asked or (answer := _ask(unsure)) is None:
                raise
            is_moving = unsure.ask == "data" and _is_relative(options.data)
            setattr(options, unsure.ask, os.path.relpath(answer) if is_moving else answer)


def command(options: argparse.Namespace, verb: str) -> str:
    """Returns the command with all options, with answers given on the terminal."""
    words = ["clipmill", verb, options.data]
    for name in (*ROLES, "pictures", *PLAIN, "trusted", "captions"):
        value = getattr(options, name)
        words += [f"--{name}", f"{value:g}" if name == "keep" else value] if value else []
    words += ["--to", *options.to] if options.to else []
    return shlex.join(words)


def page(start: "Start", path: str, overrides: Sequence[str] = ()) -> str:
    """Returns the page on the data: what they are, five rows, and how many are unusable.

    Notes that ask for a `--set` are left out if it is given.
    """
    data = start.data
    about = "" if data.is_exact else "about "
    rows = "rows are counted as they are read" if data.rows is None else plural(data.rows, "row")
    lines = [path, f"  {'is':<16} {data.what}, {about}{rows}"]
    lines += [f"  {role:<16} {name}" for role, name in data.columns.items()]
    if data.aside:
        aside = ", ".join(f"{count:,} {kind}" for kind, count in data.aside.items())
        lines.append(f"  {'not used':<16} {aside}")
    keys = [override.partition("=")[0] for override in overrides]
    notes = [note for note in data.notes if not any(key in note for key in keys)]
    lines += [f"  {'note':<16} {note}".replace("\n", f"\n{'':<19}") for note in notes]
    lines += ["", *_table(start.preview.rows.slice(0, SHOWN), data.scores), ""]
    return "\n".join([*lines, _usable(start.preview, data.rows)])


def refuse_unusable(start: "Start", path: str) -> None:
    """Raises RecipeError if no row that was looked at can be used: a run would keep none."""
    causes = start.preview.unusable
    if sum(causes.values()) < start.preview.looked_at:
        return
    do = "give data whose first rows can be read, or mend these"
    if "outside" in causes:
        do = "their links lead out of the folder: give a copy by `cp -RL`, without links"
    names = [f"--{ROLE_OF[cause]} NAME" for cause in causes if cause in ROLE_OF]
    if names and start.data.columns:
        do = f"name the column that holds them: {' or '.join(names)}"
    raise RecipeError(_usable(start.preview, start.data.rows), path, do)


def _usable(preview: "Preview", rows: int | None) -> str:
    """Returns in words how many sampled rows can be used, and why others cannot."""
    sampled = preview.looked_at
    which = f"{'all' if rows == sampled else 'the first'} {plural(sampled, 'row')}"
    if not preview.unusable:
        return f"{which} can be used" if sampled else "no rows"
    causes = ", ".join(
        f"{count:,} {'has' if count == 1 else 'have'} {CAUSES.get(cause, cause)}"
        for cause, count in preview.unusable.items()
    )
    fine = sampled - sum(preview.unusable.values())
    return f"of {which}, {fine:,} can be used: {causes}"


def _table(rows: "pa.Table", scores: tuple[str, ...]) -> list[str]:
    """Returns rows as lines of the terminal's width: caption, link or file, picture, scores."""
    names = {"text": "caption", "url": "link or file", "image_bytes": "picture"}
    names |= {name: name for name in scores}
    present = [
        name for name in names if name in rows.column_names and rows[name].null_count < len(rows)
    ]
    shown = {names[name]: rows[name].to_pylist() for name in present}
    cells = {head: [head, *map(_cell, values)] for head, values in shown.items()}
    if "picture" in cells:
        cells["picture"][1:] = [f"{cell} bytes" if cell else "" for cell in cells["picture"][1:]]
    lines = list(zip(*cells.values(), strict=True))
    return aligned(lines, width=shutil.get_terminal_size().columns, indent=2)


def _cell(value: Any) -> str:
    from clipmill.pipeline.terminal import one_line

    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else one_line(value)


def _ask(unsure: "UnsureError") -> str | None:
    """Asks the user; returns the answer, or None at the end of input."""
    _, where, _ = unsure.args
    names = list(unsure.candidates)
    print(f"{where}: {len(names)} may be the {unsure.ask}", file=sys.stderr)
    for number, (name, example) in enumerate(unsure.candidates.items(), 1):
        print(f"  {number}  {name}{example and f'   {example}'}", file=sys.stderr)
    while True:
        print(
            f"which is the {unsure.ask}? 1 to {len(names)}: ", end="", file=sys.stderr, flush=True
        )
        answer = sys.stdin.readline()
        if not answer:
            return None
        word = answer.strip()
        if word in names:
            return word
        if word.isdecimal() and 1 <= int(word) <= len(names):
            return names[int(word) - 1]


def _is_relative(path: str) -> bool:
    return "://" not in path and not os.path.isabs(os.path.expanduser(path))


def _whole_path(path: str) -> str:
    """Returns the absolute path; refuses URIs with keys."""
    from clipmill.metadata.keys import without_keys
    from clipmill.metadata.storage import KEYS

    if not path:
        raise RecipeError("an empty path", "DATA", "name a file, a folder, a glob or a URI")
    if page := HUB.match(path):
        raise RecipeError("a page of the Hub", path, f"give the data:  hf://datasets/{page[1]}")
    if without_keys(path) != path:
        raise RecipeError("a URI with keys in it", path, f"a recipe stores no keys: {KEYS}")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
