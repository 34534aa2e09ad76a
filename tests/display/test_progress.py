"""Times and numbers as the user reads them."""

import pytest

from depthany.display.progress import clock, time_in_words
from depthany.system.plurals import counted


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(5, "0:05"), (65.4, "1:05"), (3599.6, "1:00:00"), (7205, "2:00:05"), (864_000, "10 days 0:00:00")],
)
def test_time_has_hours_and_days(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_time_has_its_unit() -> None:
    assert time_in_words(750) == "12:30 minutes"
    assert time_in_words(3600) == "1:00:00 hours"
    assert time_in_words(90_000) == "1 day 1:00:00 hours"


def test_one_is_no_plural() -> None:
    assert [counted(n, "image") for n in (0, 1, 1250)] == ["0 images", "1 image", "1250 images"]
