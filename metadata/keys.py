"""Removes the keys in URIs from texts that are stored or shown."""

import re

URI = re.compile(
    r"""\b(?:(s3)://((?:[^/@\s:"'?]*:[^@\n"']*@)?[^\s"'<>`]*)"""  # S3: the key may hold a space
    r"""|([a-z][a-z0-9+.-]*)://([^\s"'<>`]*))""",
    re.IGNORECASE,
)
NAMED_USER = r"[^/?#]*:[^/?#]*@"  # with a password; abfs://container@account is a location
USER = {
    "http": r"[^/?#]*@",
    "https": r"[^/?#]*@",
    "s3": rf"{NAMED_USER}|[^/@:?]*:[^@]*@",  # or a key with an unencoded slash
}
SECRET = re.compile(
    r"secret|token|passw|pwd|signature|credential$|(access|account|api)[_-]?key|^(auth|key|sas|sig)$",
    re.IGNORECASE,
)


def split_options(uri: str) -> tuple[str, str]:
    """Splits a URI before its `?`, which an S3 server's address may follow; a path has no such."""
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return place, mark + options


def without_keys(text: str) -> str:
    """Returns a text whose URIs have neither a password nor secrets in their query."""
    return URI.sub(_without, text) if "://" in text else text


def redacted(uri: str) -> str:
    """Returns a URI without keys and query, for logs and errors."""
    return split_options(without_keys(uri))[0]


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
