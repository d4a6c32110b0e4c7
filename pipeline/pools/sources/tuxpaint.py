"""Reads Tux Paint's stamps (GPL-2): pictures with a sentence in up to 69 languages."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.chance import keep
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import language_of

SOURCE = "tuxpaint-stamps-default"
MIN_KEEP = 0.30
STAMPS = "usr/share/tuxpaint/stamps/"
ARTICLES = ("a ", "an ", "the ", "some ")


def tuxpaint() -> Iterator[Drawing]:
    """Yields few pictures with many captions; each is reposted at least three times."""
    files = debian_files(
        SOURCE, lambda path: path.startswith(STAMPS) and path.endswith((".png", ".svg", ".txt"))
    )
    for path, text in sorted(files.items()):
        stem = path.removesuffix(".txt")
        image = files.get(f"{stem}.png") or files.get(f"{stem}.svg")
        key = stem.removeprefix(STAMPS)
        if not path.endswith(".txt") or image is None or keep(SOURCE, key) < MIN_KEEP:
            continue
        words = _words(text.decode("utf-8", "replace"))
        if "en" in words:
            yield Drawing(
                source=SOURCE,
                key=key,
                concept=_without_article(words["en"].label),
                group=str(PurePosixPath(key).parent),
                words=words,
                image=image,
                least_reposts=3,
            )


def _words(text: str) -> dict[str, Words]:
    """Parses the sentences: the first line is English, the others are LOCALE.utf8=sentence."""
    english, *lines = text.splitlines() or [""]
    words = {"en": Words(english.strip())}
    for line in lines:
        locale, found, sentence = line.partition(".utf8=")
        language = language_of(locale.strip())
        if found and sentence.strip() and not language.startswith("en"):
            words.setdefault(language, Words(sentence.strip()))
    return {language: word for language, word in words.items() if word.label}


def _without_article(sentence: str) -> str:
    """Returns a sentence as a concept: "A moon wrasse." becomes moon wrasse."""
    bare = sentence.lower().rstrip(".!")
    return next((bare.removeprefix(word) for word in ARTICLES if bare.startswith(word)), bare)
