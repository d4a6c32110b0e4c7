"""Reads furniture of Sweet Home 3D (CC BY 3.0, CC0) and parts of Fritzing (CC BY-SA 3.0)."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import language_of, one_line

FURNITURE = "sweethome3d-furniture"
CATALOG = re.compile(r"^PluginFurnitureCatalog(?:_(\w+))?\.properties$")
ENTRY = re.compile(r"^(name|category|icon)#(\d+)\s*=\s*(.*)$", re.MULTILINE)
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")

FRITZING = "fritzing-parts"
PARTS = "usr/share/fritzing/parts/"
BREADBOARD = re.compile(r"<breadboardView>.*?<layers[^>]*\bimage=[\"']([^\"']+)", re.DOTALL)
FIELD = "<{0}(?: [^>]*)?>(.*?)</{0}>"
FAMILY = r"<property name=[\"']family[\"']>(.*?)</property>"


def furniture() -> Iterator[Drawing]:
    """Yields few pictures with names in up to 21 languages; each is reposted at least twice."""
    archives = debian_files(FURNITURE, lambda path: path.endswith(".sh3f"))
    for path, archive in sorted(archives.items()):
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            yield from _catalog(PurePosixPath(path).stem, files)


def _catalog(name: str, files: zipfile.ZipFile) -> Iterator[Drawing]:
    names = set(files.namelist())
    by_language = {
        language_of(match[1] or "en"): _entries(files.read(file))
        for file in sorted(names)
        if (match := CATALOG.match(file)) and not (match[1] or "").startswith("en")
    }
    english = by_language["en"]
    for number, entry in sorted(english.items()):
        icon = entry.get("icon", "").lstrip("/")
        if icon in names and entry.get("name"):
            yield Drawing(
                source=FURNITURE,
                key=f"{name}/{number}",
                concept=entry["name"].lower(),
                group=f"furniture {entry.get('category', '')}",
                words={
                    language: Words(own["name"], tuple(filter(None, [own.get("category")])))
                    for language, entries in by_language.items()
                    if (own := entries.get(number, {})).get("name")
                },
                image=files.read(icon),
                least_reposts=2,
            )


def _entries(properties: bytes) -> dict[str, dict[str, str]]:
    """Parses Java properties by number: Latin-1, everything else escaped."""
    entries: dict[str, dict[str, str]] = {}
    for field, number, value in ENTRY.findall(properties.decode("latin-1")):
        text = ESCAPE.sub(lambda match: chr(int(match[1], 16)), value).replace("\\", "").strip()
        entries.setdefault(number, {})[field] = text
    return entries


def fritzing() -> Iterator[Drawing]:
    """Yields electronic parts in their breadboard view."""
    files = debian_files(
        FRITZING, lambda path: path.startswith((f"{PARTS}core/", f"{PARTS}svg/core/breadboard/"))
    )
    for path, data in sorted(files.items()):
        if not path.endswith(".fzp"):
            continue
        part = data.decode("utf-8", "replace")
        view = BREADBOARD.search(part)
        svg = files.get(f"{PARTS}svg/core/{view[1]}") if view else None
        title, description = (_text(FIELD.format(name), part) for name in ("title", "description"))
        if svg is not None and title:
            words = Words(title, keywords=(description[:300],) if description else ())
            key = PurePosixPath(path).stem
            family = _text(FAMILY, part).lower() or "part"
            yield Drawing(FRITZING, key, title.lower(), f"electronics {family}", {"en": words}, svg)


def _text(pattern: str, part: str) -> str:
    match = re.search(pattern, part, re.DOTALL)
    return one_line(match[1]) if match else ""
