"""Reports of the shared runs, as several files of these tests read them."""

import pytest

from clipmill.pipeline.report.build import report


@pytest.fixture(scope="session")
def html(state) -> str:
    """Of the drawn pictures."""
    return report(state)


@pytest.fixture(scope="session")
def captioned_html(captioned) -> str:
    return report(captioned)


@pytest.fixture(scope="session")
def clustered_html(clustered) -> str:
    return report(clustered)
