"""Reads pictures of HTML manuals with alt texts: GIMP's in five languages, scikit-learn's.

Licences: GFDL, BSD-3. Alt texts that are a file name, or of a navigation icon, are kept as
boilerplate, as on the web. Pictures without an alt text are left out.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from posixpath import normpath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import image_tags, name_words

GIMP_LANGUAGES = ("en", "de", "fr", "ja", "ru")
SKLEARN = "python-sklearn-doc"
MAX_USES = 50  # of a file in one language: manuals have arrows on every page
NAVIGATION = frozenset(
    ("prev", "next", "up", "home", "note", "tip", "warning", "caution", "important")
)
FILE_NAME = re.compile(r"^\S*\.(png|jpe?g|gif|svg)$", re.IGNORECASE)
BITMAPS = (".png", ".jpg", ".jpeg", ".gif")


def gimp_help(language: str) -> Iterator[Drawing]:
    """Yields every use of a picture in a manual; an alt of the English manual counts as English."""
    package, files = _gimp_files(language)
    english = frozenset() if language == "en" else _english_alts()
    for number, image, path, alt in _uses(files, _gimp_root(language)):
        own_language = "en" if alt in english else language
        key = f"{language}/{image}#{number}"
        yield _drawing(package, key, image, files[path], alt, own_language)


def sklearn_doc() -> Iterator[Drawing]:
    """Yields plots and gallery pictures, each with all its different alts."""
    root = "usr/share/doc/python-sklearn-doc/html/"
    files = debian_files(
        SKLEARN, lambda path: path.startswith(root) and path.endswith((*BITMAPS, ".html"))
    )
    seen = set()
    for number, image, path, alt in _uses(files, root):
        if (image, alt) not in seen:
            seen.add((image, alt))
            yield _drawing(SKLEARN, f"{image}#{number}", image, files[path], alt, "en")


def _gimp_root(language: str) -> str:
    return f"usr/share/gimp/3.0/help/{language}/"


def _gimp_files(language: str) -> tuple[str, dict[str, bytes]]:
    package, root = f"gimp-help-{language}", _gimp_root(language)
    return package, debian_files(
        package, lambda path: path.startswith(root) and path.endswith((*BITMAPS, ".html"))
    )


@lru_cache(maxsize=1)
def _english_alts() -> frozenset[str]:
    """Returns the English manual's alts, which unfinished translations repeat."""
    _, files = _gimp_files("en")
    return frozenset(alt for _, _, _, alt in _uses(files, _gimp_root("en")))


def _uses(files: Mapping[str, bytes], root: str) -> Iterator[tuple[int, str, str, str]]:
    """Yields (number of the use, name below the root, path, alt) for every use of a picture."""
    uses: Counter[str] = Counter()
    for page in sorted(path for path in files if path.endswith(".html")):
        for link, alt in image_tags(files[page].decode("utf-8", "replace")):
            path = normpath(f"{PurePosixPath(page).parent}/{link}")
            if alt and path in files and path.endswith(BITMAPS) and uses[path] < MAX_USES:
                uses[path] += 1
                yield uses[path], path.removeprefix(root), path, alt


def _drawing(source: str, key: str, image: str, data: bytes, alt: str, language: str) -> Drawing:
    place = PurePosixPath(image)
    is_junk = FILE_NAME.match(alt) is not None or place.stem in NAVIGATION
    return Drawing(
        source=source,
        key=key,
        concept=name_words(place.stem) or place.stem,
        group=f"{source.partition('-')[0]} {place.parent}",
        words={} if is_junk else {language: Words(alt)},
        image=data,
        junk=alt if is_junk else None,
    )
