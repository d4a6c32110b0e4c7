"""The normal form of URLs: one spelling for links that mean the same to every server."""

import string
from functools import lru_cache

import pyarrow as pa

UNRESERVED = string.ascii_letters + string.digits + "-._~"  # RFC 3986: %41 and A are one
ADDRESS = r"^(?<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?<user>[^/?@]*@)?(?<host>[^/?]*)(?<rest>.*)$"


def normalised(url: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Each link in normal form; null where it is null or blank.

    Source: RFC 3986, 6.2.2 and 6.2.3: scheme and host in lower case, no default port, no fragment,
    percent-encodings in upper case and only where needed, an empty path as /. White space goes.
    The query and a trailing slash stay: servers may mind them.
    """
    import polars as pl

    column = pl.DataFrame(pa.table({"url": url})).to_series().cast(pl.String)
    bare = column.str.replace_all(r"\s+", "").str.replace(r"#.*$", "")
    parts = bare.str.extract_groups(ADDRESS).struct.unnest()
    scheme, host = (pl.col(name).str.to_lowercase() for name in ("scheme", "host"))
    address = pl.concat_str(scheme, pl.lit("://"), pl.col("user").fill_null(""), host)
    address = address.str.replace(r"^(http://.*):80$", "${1}")
    address = address.str.replace(r"^(https://.*):443$", "${1}").str.strip_suffix(":")
    rest = pl.col("rest").str.replace(r"^(\?|$)", "/${1}")
    whole = parts.select(address + rest).to_series().fill_null(bare)
    spelt = whole.str.replace_many(*encodings())
    return spelt.replace("", None).to_arrow().cast(pa.large_string())


@lru_cache
def encodings() -> tuple[list[str], list[str]]:
    """Every spelling of a percent-encoding, and its normal form."""
    spellings, normal = [], []
    for byte in range(256):
        upper = f"%{byte:02X}"
        plain = chr(byte) if chr(byte) in UNRESERVED else upper
        for high in {upper[1], upper[1].lower()}:
            for low in {upper[2], upper[2].lower()}:
                if f"%{high}{low}" != plain:
                    spellings.append(f"%{high}{low}")
                    normal.append(plain)
    return spellings, normal
