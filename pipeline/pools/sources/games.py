"""Reads pictures of games: PySol's card sets (mostly GPL-2+), Crossfire's tiles (GPL)."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from clipmill.pipeline.packages import debian_files
from clipmill.pipeline.pools.chance import keep
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.sources.texts import name_words

PYSOL = "pysolfc-cardsets"
PYSOL_ROOT = "usr/share/games/pysolfc/"
MIN_KEEP_PYSOL = 0.45
FRENCH_CARDS = "1"
DECKS = {
    "2": "hanafuda card",
    "3": "tarock card",
    "4": "mahjongg tile",
    "5": "hex deck card",
    "6": "mughal ganjifa card",
    "7": "navagraha ganjifa card",
    "8": "dashavatara ganjifa card",
    "9": "trump card",
}
RANKS = (
    *("ace", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("jack", "queen", "king"),
)
SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
CARD = re.compile(r"^(?:(\d\d)([a-z])|back(\d\d))\.gif$")

CROSSFIRE = "crossfire-client-images"
CROSSFIRE_FILE = "usr/share/games/crossfire-client/crossfire.base"
TILE = re.compile(rb"IMAGE (\d+) (\S+)\n")


def pysol() -> Iterator[Drawing]:
    """Yields cards: French ones by rank and suit, others by their deck's name alone."""
    files = debian_files(
        PYSOL, lambda path: path.startswith(PYSOL_ROOT) and path.endswith((".gif", "/config.txt"))
    )
    decks = {}
    for path, data in files.items():
        if path.endswith("/config.txt"):
            decks[str(PurePosixPath(path).parent)] = _deck(data.decode("utf-8", "replace"))
    for path, image in sorted(files.items()):
        folder, file = str(PurePosixPath(path).parent), PurePosixPath(path).name
        card = CARD.match(file)
        name = PurePosixPath(folder).name
        if card is None or folder not in decks or keep(PYSOL, name) < MIN_KEEP_PYSOL:
            continue
        deck, kind = decks[folder]
        rank, suit = int(card[1] or 0), card[2] or ""
        tags: tuple[str, ...] = (DECKS.get(kind, "playing card"),)
        concept, label = deck.lower(), deck
        if card[3]:
            label, tags = f"back of a {tags[0]}", (deck,)
        elif kind == FRENCH_CARDS and 1 <= rank <= len(RANKS) and suit in SUITS:
            concept = label = f"{RANKS[rank - 1]} of {SUITS[suit]}"
            tags = ("playing card", deck)
        group = f"cards {DECKS.get(kind, 'french')}"
        yield Drawing(PYSOL, f"{name}/{file}", concept, group, {"en": Words(label, tags)}, image)


def _deck(config: str) -> tuple[str, str]:
    """Returns name and type of a card set."""
    first, second, *_ = [*config.splitlines(), "", ""]
    fields = first.split(";")
    kind = fields[3].strip() if len(fields) > 3 else FRENCH_CARDS
    return second.rpartition(";")[2].strip(), kind


def crossfire() -> Iterator[Drawing]:
    """Yields tiles from one file: a line with length and name, then the PNG."""
    (data,) = debian_files(CROSSFIRE, lambda path: path == CROSSFIRE_FILE).values()
    start = 0
    while head := TILE.match(data, start):
        end = head.end() + int(head[1])
        path = PurePosixPath(head[2].decode("utf-8", "replace"))
        start = end
        # ./arch/monster/giant/DreadKnight/Bk.x11: folder and stem name the thing.
        folders = path.parts[1:-1] if path.parts[:1] == ("arch",) else path.parts[:-1]
        stem = name_words(path.name.partition(".")[0])
        words = [name_words(folders[-1]) if folders else "", stem]
        label = " ".join(dict.fromkeys(" ".join(words).split()))
        if label:
            yield Drawing(
                source=CROSSFIRE,
                key=str(path),
                concept=stem or label,
                group=f"crossfire {'/'.join(folders[:2])}",
                words={"en": Words(label)},
                image=data[head.end() : end],
            )
