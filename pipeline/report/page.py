"""Templates to HTML: everything escaped but what the templates themselves write."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report.charts import short
from pipeline.terminal import cut

TEMPLATES = Path(__file__).parent / "templates"
MINUS = "\N{MINUS SIGN}"


def render(template: str, **values: Any) -> str:
    """The page. A value that a template lacks is an error, never a blank."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": "{:.1%}".format,
        "points": lambda share: f"{100 * share:.1f}".replace("-", MINUS),
        "signed": lambda share: f"{100 * share:+.1f}".replace("-", MINUS),
        "short": short,
        "size": size,
        "lasting": lasting,
        "value": value,
        "cut": cut,
    }
    return environment.get_template(template).render(values)


def size(size_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def lasting(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def value(stored: Any) -> str:
    """A stored value in few characters."""
    if stored is None:
        return "none"
    if isinstance(stored, bytes):
        return stored.hex()[:8]
    return short(stored) if isinstance(stored, float) else str(stored)
