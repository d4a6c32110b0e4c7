"""Renders templates to HTML; escapes everything but the templates' own text."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clipmill.pipeline.report.charts import short
from clipmill.pipeline.run_folder.words import duration, in_words, size
from clipmill.pipeline.terminal import cut, percent

TEMPLATES = Path(__file__).parent / "templates"
MINUS = "\N{MINUS SIGN}"
# Control characters of untrusted text, which make grep take a page for binary.
NO_HTML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f]")
PICTURES = 0x2400  # pictures of control characters: NUL is ␀


def render(template: str, **values: Any) -> str:
    """Returns the page; raises an error for a value that a template lacks."""
    page = _environment().get_template(template).render(values)
    return NO_HTML.sub(lambda match: chr(PICTURES + ord(match[0])), page)


@cache
def _environment() -> Environment:
    """Returns the environment of all pages; cached, as compiling takes longer than filling."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": percent,
        "points": lambda share: f"{100 * share:.1f}".replace("-", MINUS),
        # + 0.0: never -0.0
        "signed": lambda share: f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", MINUS),
        "short": short,
        "size": size,
        "lasting": duration,
        "value": value,
        "cut": cut,
        "words": lambda reason, *longest: cut(in_words(reason), *longest),
    }
    return environment


def value(stored: Any) -> str:
    """Returns a stored value in few characters."""
    if stored is None:
        return "none"
    if isinstance(stored, bytes):
        return stored.hex()[:8]
    if isinstance(stored, list):
        return f"[{', '.join(map(value, stored))}]"
    return short(stored) if isinstance(stored, float) else str(stored)
