"""How long a server asks us to wait. What else a server may do: download/test_images."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from clipmill.stages.download._web import _retry_after_s


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("7", 7),
        ("", 0),
        ("soon", 0),
        ("-3", 0),
        ("Mon, 99 Foo", 0),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", 0),
    ],
)
def test_retry_after_in_seconds(wish, seconds):
    assert _retry_after_s(wish) == seconds


def test_retry_after_as_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert 55 < _retry_after_s(date) <= 60
