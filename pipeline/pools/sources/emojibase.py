"""Reads emoji names in 26 languages, emojibase-data (MIT); English keywords, emojilib (MIT)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clipmill.pipeline.packages import npm_files
from clipmill.pipeline.pools.drawing import Words

PACKAGES = (("emojibase-data", "17.0.0"), ("emojilib", "4.0.3"))
DIALECTS = frozenset({"en-gb", "es-mx"})  # nearly every label equals the main language's


@dataclass(frozen=True)
class Emoji:
    """An emoji or skin-tone variant; its concept is the label without a skin tone."""

    concept: str
    group: str
    subgroup: str
    words: Mapping[str, Words]


@dataclass(frozen=True)
class Emojibase:
    """All emojis by `normal_hex`, and hex codes by squashed name."""

    by_hex: Mapping[str, Emoji]
    hex_by_name: Mapping[str, str]


def normal_hex(spelling: str) -> str:
    """Normalises a code sequence: packages differ in case, padding and FE0F."""
    codes = spelling.upper().replace("_", "-").split("-")
    return "-".join(code.lstrip("0") for code in codes if code != "FE0F")


def squashed(name: str) -> str:
    """Keeps letters and digits only: "Waving Hand: light" equals waving-hand-light."""
    return "".join(char for char in name.lower() if char.isalnum())


@lru_cache(maxsize=1)
def emojibase() -> Emojibase:
    """Reads all emojis of both packages."""
    (data_name, data_version), (lib_name, lib_version) = PACKAGES
    files = npm_files(
        data_name,
        data_version,
        lambda path: (
            path.endswith("/data.json")
            or (path.startswith("en/shortcodes/") and path.endswith(".json"))
            or path in ("meta/groups.json", "meta/unicode-names.json")
        ),
    )
    (english,) = npm_files(
        lib_name, lib_version, lambda path: path.endswith(".json") and path != "package.json"
    ).values()
    keywords = json.loads(english)
    read = {path: json.loads(data) for path, data in files.items()}
    languages = sorted(
        {path.removesuffix("/data.json") for path in read if path.endswith("/data.json")} - DIALECTS
    )
    words: dict[str, dict[str, Words]] = {}
    for language in languages:
        for base in read[f"{language}/data.json"]:
            for entry in (base, *base.get("skins", ())):
                names = _words(entry, base, keywords if language == "en" else {})
                words.setdefault(normal_hex(entry["hexcode"]), {})[language] = names
    groups = read["meta/groups.json"]
    by_hex = {
        (hexcode := normal_hex(entry["hexcode"])): Emoji(
            concept=base["label"],
            group=groups["groups"].get(str(base.get("group")), "symbols"),
            subgroup=groups["subgroups"].get(str(base.get("subgroup")), "alphanum"),
            words=words[hexcode],
        )
        for base in read["en/data.json"]
        for entry in (base, *base.get("skins", ()))
    }
    return Emojibase(by_hex, _names(by_hex, read))


def _words(entry: dict[str, Any], base: dict[str, Any], keywords: Mapping[str, list[str]]) -> Words:
    own = keywords.get(base["emoji"], ())
    return Words(
        label=entry["label"],
        tags=tuple(entry.get("tags", base.get("tags", ()))),
        character=entry["emoji"],
        keywords=tuple(word.replace("_", " ") for word in own),
        noun="emoji",
    )


def _names(by_hex: Mapping[str, Emoji], read: dict[str, Any]) -> dict[str, str]:
    """Returns squashed names to hex codes: English label, then Unicode name, then shortcode."""
    names: dict[str, str] = {}
    for hexcode, emoji in by_hex.items():
        names.setdefault(squashed(emoji.words["en"].label), hexcode)
    for spelling, name in read["meta/unicode-names.json"].items():
        names.setdefault(squashed(name), normal_hex(spelling))
    for path in sorted(path for path in read if path.startswith("en/shortcodes/")):
        for spelling, codes in read[path].items():
            for code in [codes] if isinstance(codes, str) else codes:
                names.setdefault(squashed(code), normal_hex(spelling))
    return {name: hexcode for name, hexcode in names.items() if hexcode in by_hex}
