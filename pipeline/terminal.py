"""Guards the terminal: everything that a verb prints passes here.

Captions, links, keys and file names are foreign text. On a terminal a control character in them is
a command: it recolours, retitles, overwrites lines above, reverses text.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from clipmill.metadata.keys import without_keys

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, ProgressColumn

CONTROL = re.compile(  # C0 but for tab and line feed, DEL, C1, marks and overrides of direction
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
LEAST = 12  # characters that a column keeps, however narrow the terminal
LONGEST = 160  # characters of a condition or a value on a page


def harmless(text: str) -> str:
    """Returns the text without keys; control characters are escaped as in JSON."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", without_keys(text))


def cut(text: str, longest: int = LONGEST) -> str:
    """Returns the text; a long one as its start, its number of characters, its end."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"


def plural(count: int, word: str) -> str:
    """Returns `1 row`, `2,000 rows`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """Formats a share: `12.3%`; `<0.1%` and `>99.9%` where rounding would say none or all."""
    text = f"{share:.1%}"
    if text == "0.0%" and share > 0:
        return "<0.1%"
    return ">99.9%" if text == "100.0%" and share < 1 else text


def one_line(value: object) -> str:
    """Returns a value as text, `cut`, in one line: no value can imitate a line of ours."""
    return cut(" ".join(str(value).split()))


class Guarded:
    """A stream that writes `harmless` text, and escapes characters it cannot encode."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._read_or_not():
            self.stream.write(harmless(text))
        return len(text)

    def flush(self) -> None:
        with self._read_or_not():
            self.stream.flush()

    @contextmanager
    def _read_or_not(self) -> Iterator[None]:
        """Discards output once a pipe's reader has left (`| head`); the work goes on."""
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard() -> None:
    """Replaces stdout and stderr of this process by guarded streams."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Guarded):
            setattr(sys, name, Guarded(stream))


@contextmanager
def bars(*columns: "ProgressColumn") -> Iterator["Progress"]:
    """Shows bars on standard error; text printed meanwhile appears above, `harmless`, too."""
    from rich.console import Console
    from rich.progress import Progress

    stream: Any = sys.stderr  # rich needs control characters: it bypasses the guard
    console = Console(file=stream.stream if isinstance(stream, Guarded) else stream)
    with Progress(*columns, console=console) as progress:
        guard()  # rich replaced our streams
        yield progress


@contextmanager
def drawing(draw: "Callable[[int], RenderableType]", every_s: float, stream: Any) -> Iterator[None]:
    """Redraws `draw(rows)` every `every_s`; printed text appears above it.

    The drawn text must be `harmless`.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream.stream if isinstance(stream, Guarded) else stream)

    def drawn() -> "RenderableType":
        return draw(console.height - 1)  # the cursor takes a row

    with Live(get_renderable=drawn, console=console, refresh_per_second=1 / every_s):
        guard()  # rich replaced our streams
        yield


def as_text(drawn: "RenderableType", width: int) -> str:
    """Renders with rich, `width` columns wide, without colour and trailing spaces.

    The result is the same for pipes and terminals.
    """
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def aligned(
    rows: Sequence[Sequence[str]],
    right: Collection[int] = (),
    width: int | None = None,
    indent: int = 0,
) -> list[str]:
    """Returns rows as lines of aligned columns, two spaces apart; those in `right` flush right.

    With a `width` in characters, the widest columns shrink until all fit; without one no cell is
    cut.
    """
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    cells = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        widths = _fitting(widths, width - indent - 2 * (len(widths) - 1))
    drawn = Table.grid(padding=(0, 2, 0, 0))
    for place, wide in enumerate(widths):
        justify: Literal["left", "right"] = "right" if place in right else "left"
        drawn.add_column(justify=justify, width=wide, no_wrap=True, overflow="ellipsis")
    for row in cells:
        drawn.add_row(*map(Text, row))
    across = indent + sum(widths) + 2 * len(widths)
    return as_text(Padding(drawn, (0, 0, 0, indent)), across).splitlines() if cells else []


def _fitting(widths: list[int], width: int) -> list[int]:
    """Shrinks the widest columns until the sum of all is at most `width`."""
    while sum(widths) > width and (most := max(widths)) > LEAST:
        second = max([size for size in widths if size < most], default=LEAST)
        many = widths.count(most)
        less = max(LEAST, second, most - -(-(sum(widths) - width) // many))
        widths = [less if size == most else size for size in widths]
    return widths
