"""The door to the terminal: all that a verb prints passes here.

Captions, links, keys and file names are a stranger's words. On a terminal a control character in
them is a command: it recolours, retitles, overwrites what stands above, turns lines about.
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
    """The text without keys, each control character as JSON writes it: so JSON stays JSON."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", without_keys(text))


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, or its begin and its end with the count of all its characters between."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"


def one_line(value: object) -> str:
    """A value, `cut`, its line breaks as spaces: no value looks like a line of ours."""
    return cut(" ".join(str(value).split()))


class Guarded:
    """A stream that gets what is `harmless`, and codes of characters that it cannot encode."""

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
        """Once a pipe's reader has left (`| head`), what is said goes nowhere; the work goes on."""
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
    """Puts both streams of this process behind the door, for good."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Guarded):
            setattr(sys, name, Guarded(stream))


@contextmanager
def bars(*columns: "ProgressColumn") -> Iterator["Progress"]:
    """Bars on standard error; what is printed meanwhile stands above them, `harmless` too."""
    from rich.console import Console
    from rich.progress import Progress

    stream: Any = sys.stderr  # rich draws with control characters: past the door, our words only
    console = Console(file=stream.stream if isinstance(stream, Guarded) else stream)
    with Progress(*columns, console=console) as progress:
        guard()  # for rich puts streams of its own in the place of ours
        yield progress


@contextmanager
def drawing(draw: "Callable[[int], RenderableType]", every_s: float, stream: Any) -> Iterator[None]:
    """What `draw` gives, in so many rows, drawn anew; what is printed stands above it.

    Its text must be `harmless`.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream.stream if isinstance(stream, Guarded) else stream)

    def drawn() -> "RenderableType":
        return draw(console.height - 1)  # the cursor has a row of its own

    with Live(get_renderable=drawn, console=console, refresh_per_second=1 / every_s):
        guard()  # for rich puts streams of its own in the place of ours
        yield


def as_text(drawn: "RenderableType", width: int) -> str:
    """The lines of what rich draws, in so many columns and no colour, without spaces at their ends.

    The same wherever it is printed: a pipe gets what a terminal does.
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
    """The rows as lines, a column under the other, two spaces apart; numbers stand `right`.

    In so many columns of the terminal the widest give way until all fit; without a width each
    cell is whole, on a terminal as in a pipe.
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
        side: Literal["left", "right"] = "right" if place in right else "left"
        drawn.add_column(justify=side, width=wide, no_wrap=True, overflow="ellipsis")
    for row in cells:
        drawn.add_row(*map(Text, row))
    room = indent + sum(widths) + 2 * len(widths)
    return as_text(Padding(drawn, (0, 0, 0, indent)), room).splitlines() if cells else []


def _fitting(wide: list[int], room: int) -> list[int]:
    """Widths of columns that need so many characters: the widest give until all fit."""
    widths = list(wide)
    while sum(widths) > room and (most := max(widths)) > LEAST:
        second = max([size for size in widths if size < most], default=LEAST)
        many = widths.count(most)
        less = max(LEAST, second, most - -(-(sum(widths) - room) // many))
        widths = [less if size == most else size for size in widths]
    return widths
