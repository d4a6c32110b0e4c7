"""Limits: the environment sets them, and a word that is no number is refused by its name."""

import pytest

from clipmill.metadata.limits import DEFAULTS, limit


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_limit_is_its_default_or_what_the_environment_says(name, monkeypatch):
    assert limit(name) == DEFAULTS[name] > 0
    monkeypatch.setenv(f"CLIPMILL_{name}", "7")
    assert limit(name) == 7


@pytest.mark.parametrize("text", ["", "0", "-1", "1e6", "2 GB", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("CLIPMILL_MAX_TAR_HEADER_BYTES", text)
    with pytest.raises(ValueError, match="CLIPMILL_MAX_TAR_HEADER_BYTES="):
        limit("MAX_TAR_HEADER_BYTES")
