"""Builds a pool of what Debian's HTML manuals say of their pictures: its noise is nobody's plan.

DIR/metadata and DIR/held_out/metadata, rows of other packages; DIR/www, DIR/eval; pool.json last.
DIR/packages holds the rows of each finished package: an interrupted build goes on with the rest.
"""

import io
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipmill.pipeline.errors import StageError
from clipmill.pipeline.packages import cached_versions, debian_stream
from clipmill.pipeline.pools.build import FOLDERS, UNFINISHED, clear, shown_progress, stored_counts
from clipmill.pipeline.pools.chance import hex_id
from clipmill.pipeline.pools.evaluation import EvaluationSet, write_set
from clipmill.pipeline.pools.picture import encode, on_background
from clipmill.pipeline.pools.server import BEHAVIOUR, HOST
from clipmill.pipeline.pools.sources.pages import MAX_PAGE_BYTES, path_in_package, uses_of
from clipmill.pipeline.pools.truth import METADATA, write_metadata

Texts = dict[str, tuple[str, str]]  # of a picture: text to its kind and its page

LAYOUT = 1  # raise it when the same packages would give other rows
PACKAGES = (
    *("debian-edu-doc-en", "debian-handbook", "grass-doc", "installation-guide-amd64"),
    *("kicad-doc-en", "kicad-doc-ja", "libgtk-3-doc", "libgtk-4-doc", "libpcl-doc"),
    *("libvigraimpex-doc", "opencv-doc", "python-astropy-doc", "python-scipy-doc"),
    *("python-silx-doc", "python-sklearn-doc", "python-xarray-doc", "qt6-base-doc-html"),
    *("qt6-declarative-doc-html", "qt6-quick3d-doc-html", "qtcreator-doc"),
)
HELD_OUT = ("gimp-help-en", "puredata-doc", "python-ezdxf-doc", "python-vispy-doc")
PAGES = (".html", ".htm", ".xhtml")
BITMAPS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")
MAX_TEXTS = 50  # of a picture: logos and arrows stand on every page
DONE, HELD = "packages", "held_out"
ROWS = pa.schema([*METADATA, *((name, pa.string()) for name in ("package", "text_kind", "page"))])
EVALUATION = "docs_retrieval"
NUMBER = re.compile(r"^\w+\.? \d+(\.\d+)*\.? ")  # Figure 15.38.
EVALUATION_SIDE_PX = 256
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow says it


def build_docs(
    out: Path,
    port: int = 8765,
    packages: Sequence[str] = PACKAGES,
    held_out: Sequence[str] = HELD_OUT,
) -> dict[str, Any]:
    """Builds the pool in `out`, unless it is there complete; returns counts, and what is missing.

    A package that cannot be had stands in `missing` with the reason, and is tried again by the next
    build; StageError if none can be had.
    """
    names = [*packages, *held_out]
    facts: dict[str, Any] = {"kind": "docs", "port": port, "layout": LAYOUT}
    if found := stored_counts(out, facts):
        if not found["missing"]:
            return found
        (out / UNFINISHED).touch()
    resumed = {DONE, "www"} if (out / DONE).is_dir() else set()
    clear(out, [folder for folder in FOLDERS if folder not in resumed])
    (out / DONE).mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with shown_progress() as progress:
        for number, name in enumerate(names, 1):
            try:
                rows += _package_rows(name, out)
            except StageError as error:
                missing[name] = error.args[0]
            progress("reading packages", number, len(names))
    if not rows:
        raise StageError(
            found=f"none of {len(names)} packages; {names[0]}: {missing[names[0]]}",
            where="clipmill pool docs",
            do="run this on Debian or Ubuntu, after `apt-get update`",
        )
    strangers = [row for row in rows if row["package"] in held_out]
    own = [row for row in rows if row["package"] not in held_out]
    figures = _figures(strangers, {row["sha256"] for row in own}, out / "www")
    write_set(figures, out / "eval")
    for row in rows:
        row["url"] = f"http://{HOST}:{port}/{quote(row['path'])}"
    write_metadata(own, out / "metadata", ROWS)
    write_metadata(strangers, out / HELD / "metadata", ROWS)
    (out / "www" / BEHAVIOUR).write_text("{}\n")
    counts: dict[str, Any] = {"rows": len(own), "held_out": len(strangers)}
    counts |= {"figures": len(figures.images), **Counter(row["text_kind"] for row in own)}
    counts["missing"] = missing
    facts |= {"packages": cached_versions(names), "held_out": [*held_out], "counts": counts}
    (out / "pool.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / UNFINISHED).unlink()
    return counts


def _package_rows(name: str, out: Path) -> list[dict[str, Any]]:
    """Returns a package's rows, and writes its pictures, unless an earlier build has."""
    done = out / DONE / f"{name}.parquet"
    if not done.exists():
        rows = list(_pictured(name, _texts(name), out / "www"))
        if not rows:
            raise StageError(
                found="no picture that a page has words for",
                where=f"package {name}",
                do="look into it: its layout may have changed",
            )
        part = done.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(rows), part)
        part.replace(done)
    written: list[dict[str, Any]] = pq.read_table(done).to_pylist()
    return written


def _texts(name: str) -> dict[str, Texts]:
    """Returns the texts of each picture that the pages of a package show, by its path."""
    texts: dict[str, Texts] = defaultdict(dict)
    links: dict[str, str] = {}
    for page, file in debian_stream(name, lambda path: path.lower().endswith(PAGES)):
        if isinstance(file, str):  # of a page or a picture
            links[page] = file
            continue
        for use in uses_of(file[:MAX_PAGE_BYTES]):
            path = path_in_package(page, use.src)
            if path and path.lower().endswith(BITMAPS):
                for kind, text in use.texts():
                    texts[path].setdefault(text, (kind, page))
    for path in sorted(texts.keys() & links.keys()):
        texts[links[path]] = texts.pop(path) | texts[links[path]]
    return texts


def _pictured(name: str, texts: Mapping[str, Texts], www: Path) -> Iterator[dict[str, Any]]:
    """Writes the pictures that are in the package, and yields a row for each of their texts."""
    for path, image in debian_stream(name, texts.__contains__):
        if isinstance(image, str):
            continue
        target = www / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image)
        width, height = _size_px(image)
        for text, (kind, page) in islice(texts[path].items(), MAX_TEXTS):
            yield {
                "uid": hex_id("docs", name, path, text),
                "path": f"{name}/{path}",
                "text": text,
                "original_width": width,
                "original_height": height,
                "sha256": sha256(image).hexdigest(),
                "package": name,
                "text_kind": kind,
                "page": page,
            }


def _size_px(image: bytes) -> tuple[int, int] | tuple[None, None]:
    """Returns width and height from the header; null where there is none, as on the web."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except UNREADABLE:
        return None, None


def _figures(rows: Sequence[Mapping[str, Any]], in_pool: Set[str], www: Path) -> EvaluationSet:
    """Returns a retrieval set of figures with captions that no other figure of the set has."""
    captions: dict[str, set[str]] = defaultdict(set)
    paths: dict[str, str] = {}
    for row in rows:
        if row["text_kind"] == "figcaption" and row["sha256"] not in in_pool:
            captions[row["sha256"]].add(NUMBER.sub("", row["text"]))
            paths[row["sha256"]] = row["path"]
    figures_with = Counter(text for texts in captions.values() for text in texts)
    images, own = {}, {}
    for key, texts in sorted(captions.items()):
        with suppress(*UNREADABLE), Image.open(www / paths[key]) as opened:
            picture = on_background(opened)
            picture.thumbnail((EVALUATION_SIDE_PX, EVALUATION_SIDE_PX))
            if own_texts := sorted(text for text in texts if figures_with[text] == 1):
                own[key], images[key] = own_texts, encode(picture, "png", "#ffffff", 90)
    return EvaluationSet(EVALUATION, images, captions=own)
