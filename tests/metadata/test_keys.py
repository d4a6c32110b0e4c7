"""Keys in URIs are taken out of any text; a text without keys stays as it is, byte for byte."""

import pytest

from clipmill.metadata.keys import redacted, without_keys

OPTIONS = "endpoint_override=127.0.0.1:1&scheme=http"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"s3://KEY:SECRET@bucket/run?{OPTIONS}", f"s3://bucket/run?{OPTIONS}"),
        ("s3://KEY:SEC/RET+@bucket/a@b", "s3://bucket/a@b"),
        ("s3://KEY:SEC?R/ET@bucket/a", "s3://bucket/a"),
        ("s3://KEY:SEC RET@bucket/a", "s3://bucket/a"),
        ("s3://KEY:SEC@RET@bucket/a", "s3://bucket/a"),
        (f"s3://b/x?secret_key=SECRET&{OPTIONS}", f"s3://b/x?{OPTIONS}"),
        (f"s3://b/x?{OPTIONS}&access_key=KEY", f"s3://b/x?{OPTIONS}"),
        ("https://me:SECRET@host:8000/x?page=2#top", "https://host:8000/x?page=2#top"),
        ("https://SECRET@host/x", "https://host/x"),
        ("HTTPS://SECRET@host/x", "HTTPS://host/x"),
        ("https://h/x?X-Amz-Credential=KEY&X-Amz-Signature=SECRET", "https://h/x"),
        ("https://h/x?a=1&sig=SECRET&b=2", "https://h/x?a=1&b=2"),
        ("openai:https://me:SECRET@host/v1#model", "openai:https://host/v1#model"),
        ("pool.path=s3://KEY:SECRET@bucket/*.csv", "pool.path=s3://bucket/*.csv"),
        ("'https://a:SECRET@b/c' and s3://KEY:SECRET@d", "'https://b/c' and s3://d"),
    ],
)
def test_keys_go_and_what_is_needed_without_them_stays(text, left):
    assert without_keys(text) == left
    assert without_keys(left) == left
    assert "SEC" not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://bucket/a:b@c?{OPTIONS}",
        "abfs://files@account.dfs.core.windows.net/run",
        "gs://anonymous@bucket/run",
        "hdfs://name:8020/a@b",
        "http://host:8080/x and a mail to a@b",
        "language = 'en' AND a:b@c",
        "https://host/?page=2&size=4",
        "openai:http://127.0.0.1:8000/v1#org/model@revision",
        "open_clip:ViT-B-32@path.pt",
    ],
)
def test_a_text_without_keys_stays_as_it_is(text):
    assert without_keys(text) == text
