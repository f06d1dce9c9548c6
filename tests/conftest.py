"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real images beside the repository; SALUS_REQUIRE_SHARED=1 makes their absence a failure."""
    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        reason = "real data not present: ../shared/data"
        if os.environ.get("SALUS_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return data
