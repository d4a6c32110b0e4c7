"""Reads pictures of HTML manuals with alt texts: GIMP's in five languages, scikit-learn's.

Licences: GFDL, BSD-3. Alt texts that are a file name, or of a navigation icon, are kept as
boilerplate, as on the web. Pictures without an alt text are left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from posixpath import normpath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import image_tags, name_words

GIMP_LANGUAGES = ("en", "de", "fr", "ja", "ru")
GIMP_ROOT = "usr/share/gimp/3.0/help/{}/"
SKLEARN = "python-sklearn-doc"
MAX_USES = 50  # of a file in one language: manuals have arrows on every page
NAVIGATION = frozenset(
    ("prev", "next", "up", "home", "note", "tip", "warning", "caution", "important")
)
FILE_NAME = re.compile(r"^\S*\.(png|jpe?g|gif|svg)$", re.IGNORECASE)
BITMAPS = (".png", ".jpg", ".jpeg", ".gif")


def gimp_help(language: str) -> Iterator[Drawing]:
    """Yields every use of a picture in a manual; an alt of the English manual counts as English."""
    package = f"gimp-help-{language}"
    english = frozenset() if language == "en" else _english_alts()
    for number, image, data, alt in _uses(package, GIMP_ROOT.format(language)):
        own_language = "en" if alt in english else language
        yield _drawing(package, f"{language}/{image}#{number}", image, data, alt, own_language)


def sklearn_doc() -> Iterator[Drawing]:
    """Yields plots and gallery pictures, each with all its different alts."""
    seen = set()
    for number, image, data, alt in _uses(SKLEARN, "usr/share/doc/python-sklearn-doc/html/"):
        if (image, alt) not in seen:
            seen.add((image, alt))
            yield _drawing(SKLEARN, f"{image}#{number}", image, data, alt, "en")


@lru_cache(maxsize=1)
def _english_alts() -> frozenset[str]:
    """Returns the English manual's alts, which unfinished translations repeat."""
    return frozenset(alt for *_, alt in _uses("gimp-help-en", GIMP_ROOT.format("en")))


def _uses(package: str, root: str) -> Iterator[tuple[int, str, bytes, str]]:
    """Yields (number of the use, name below the root, picture, alt) for every use of a picture."""
    files = debian_files(
        package, lambda path: path.startswith(root) and path.endswith((*BITMAPS, ".html"))
    )
    uses: Counter[str] = Counter()
    for page in sorted(path for path in files if path.endswith(".html")):
        for link, alt in image_tags(files[page].decode("utf-8", "replace")):
            path = normpath(f"{PurePosixPath(page).parent}/{link}")
            if alt and path in files and path.endswith(BITMAPS) and uses[path] < MAX_USES:
                uses[path] += 1
                yield uses[path], path.removeprefix(root), files[path], alt


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
