"""Parses texts of old packages: file names, locale names, HTML image tags."""

import re
from collections.abc import Iterator
from html import unescape

IMAGE_TAG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
ATTRIBUTE = re.compile(r'(?<![\w-])(src|alt)\s*=\s*"([^"]*)"', re.IGNORECASE)
MARKUP = re.compile(r"<style\b.*?(?:</style>|$)|<[^>]*>", re.IGNORECASE | re.DOTALL)


def name_words(name: str) -> str:
    """Returns a file name as words: "DreadKnight-old_02" becomes "dread knight old"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[^a-z]+", " ", spaced.lower()).split()
    return " ".join(words)


def language_of(locale: str) -> str:
    """Returns a locale's language tag: pt_BR becomes pt-br; variants after @ are dropped."""
    return locale.partition("@")[0].replace("_", "-").lower()


def one_line(text: str) -> str:
    """Removes tags, style sheets, entities and line breaks.

    Runs twice, as descriptions hold HTML pages as escaped text.
    """
    for _ in range(2):
        text = unescape(MARKUP.sub(" ", text))
    return " ".join(text.split())


def image_tags(html: str) -> Iterator[tuple[str, str]]:
    """Yields source and alt of every image; a missing alt is empty."""
    for tag in IMAGE_TAG.findall(html):
        attributes = {name.lower(): unescape(value) for name, value in ATTRIBUTE.findall(tag)}
        if "src" in attributes:
            yield attributes["src"], " ".join(attributes.get("alt", "").split())
