"""Lists the packages of each pool, and reads their drawings."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from clipmill.pipeline.packages import cached_versions
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.sources import (
    emoji_svg,
    emojibase,
    games,
    iconify,
    icons,
    manuals,
    noto,
    openclipart,
    things,
    tuxpaint,
)

TRUSTED = frozenset({emoji_svg.OPENMOJI[0], emoji_svg.TWEMOJI[0], iconify.EMOJIONE[0]})

Progress = Callable[[str, int, int], None]  # (description, done, total)
Source = Callable[[], Iterable[Drawing]]
DEMO: dict[str, Source] = {
    emoji_svg.OPENMOJI[0]: emoji_svg.openmoji,
    emoji_svg.TWEMOJI[0]: emoji_svg.twemoji,
    iconify.EMOJIONE[0]: partial(iconify.emoji_icons, iconify.EMOJIONE),
    iconify.EMOJIONE_V1[0]: partial(iconify.emoji_icons, iconify.EMOJIONE_V1),
    iconify.FXEMOJI[0]: partial(iconify.emoji_icons, iconify.FXEMOJI, drop_unmatched=True),
    iconify.GAME_ICONS[0]: iconify.game_icons,
}
FULL: dict[str, Source] = {
    icons.TWITTER[0]: icons.twitter,
    openclipart.SOURCE: openclipart.openclipart,
    tuxpaint.SOURCE: tuxpaint.tuxpaint,
    **{
        f"gimp-help-{language}": partial(manuals.gimp_help, language)
        for language in manuals.GIMP_LANGUAGES
    },
    manuals.SKLEARN: manuals.sklearn_doc,
    icons.OXYGEN: icons.oxygen,
    games.PYSOL: games.pysol,
    things.FURNITURE: things.furniture,
    games.CROSSFIRE: games.crossfire,
    things.FRITZING: things.fritzing,
}
CAPTIONS = [name for name, _ in emojibase.PACKAGES]


def drawings(kind: Literal["demo", "full"], progress: Progress) -> tuple[list[Drawing], list[str]]:
    """Reads a pool's drawings, fetching packages that are not cached; and names their files."""
    sources = DEMO if kind == "demo" else DEMO | FULL
    pool_drawings: list[Drawing] = []
    for number, source in enumerate(sources.values()):
        progress(f"reading {kind} packages", number, len(sources))
        pool_drawings += source()
    progress(f"reading {kind} packages", len(sources), len(sources))
    names = [*sources, *CAPTIONS, openclipart.TITLES, noto.PACKAGE[0], noto.OLDER[0]]
    return pool_drawings, cached_versions(names)
