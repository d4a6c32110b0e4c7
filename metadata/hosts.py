"""Extracts the host of a URL: the domain that rows are grouped by."""

import pyarrow as pa

HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)"


def host_of(url: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the host of each URL as text, in lower case; null if it is not a URL."""
    import polars as pl  # late: `why` does without it

    host = pl.Series(values=url).str.extract(HOST, 1).str.to_lowercase()
    return pa.chunked_array([host.to_arrow().cast(pa.string())])
