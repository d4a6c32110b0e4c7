"""Texts without the keys that stand in their URIs: what may be stored or shown."""

import re

URI = re.compile(
    r"""\b(?:(s3)://((?:[^/@\s:"'?]*:[^@\n"']*@)?[^\s"'<>`]*)"""  # its key may hold a space
    r"""|([a-z][a-z0-9+.-]*)://([^\s"'<>`]*))""",
    re.IGNORECASE,
)
NAMED_USER = r"[^/?#]*:[^/?#]*@"  # one without a password is a place: abfs://container@account
USER = {
    "http": r"[^/?#]*@",
    "https": r"[^/?#]*@",
    "s3": rf"{NAMED_USER}|[^/@:?]*:[^@]*@",  # or a key with a slash that nobody encoded
}
SECRET = re.compile(
    r"secret|token|passw|pwd|signature|credential$|(access|account|api)[_-]?key|^(auth|key|sas|sig)$",
    re.IGNORECASE,
)


def without_keys(text: str) -> str:
    """The text, its URIs without password and without secrets in the query; else as it is."""
    return URI.sub(_without, text) if "://" in text else text


def redacted(uri: str) -> str:
    """The URI without keys and query: what a log or an error may show."""
    return without_keys(uri).partition("?")[0] if "://" in uri else uri


def _without(match: re.Match[str]) -> str:
    scheme, rest = (part for part in match.groups() if part is not None)
    if user := re.match(USER.get(scheme.lower(), NAMED_USER), rest):
        rest = rest[user.end() :]
    place, _, query = rest.partition("?")
    options = query.split("&")
    shown = [option for option in options if not SECRET.search(option.partition("=")[0])]
    if len(shown) < len(options):
        rest = f"{place}?{'&'.join(shown)}" if shown else place
    return f"{scheme}://{rest}"
