import datetime

import pytest

from qinco.collection.instants import instant, microseconds, parsed_time
from qinco.errors import ConfigError


@pytest.mark.parametrize(("text", "seconds"), [
    ("1970-01-01", 0), ("1970-01-02T00:00:00", 86400), ("1970-01-01T00:00:01Z", 1), ("1970-01-01 01:00:00+01:00", 0),
    ("1969-12-31t23:00:00.5-01:00", 0.5), ("1970-01-01T00:00:00.0000019z", 1e-6), ("0001-01-01", -62_135_596_800),
])  # fmt: skip
def test_rfc_3339(text, seconds):
    assert instant(text) == round(seconds * 1_000_000)


@pytest.mark.parametrize("text", ["", "now", "1970", "1970-02-30", "1970-01-01T", "1970-01-01T24:00:00",
                                  "1970-01-01T00:00",
                                  "1970-01-01T00:00:00.Z", "1970-01-01T00:00:00+15:00", "0000-01-01", "1970-01-01\n",
                                  "9999-12-31T23:00:00-02:00", "١٩٧٠-01-01"])  # fmt: skip
def test_other_text(text):
    assert instant(text) is None
    with pytest.raises(ConfigError, match="here is"):
        parsed_time(text, "here")


def test_datetimes():
    zone = datetime.timezone(datetime.timedelta(hours=1))
    assert (
        microseconds(datetime.datetime(1970, 1, 1, 1, tzinfo=zone)) == microseconds(datetime.datetime(1970, 1, 1)) == 0
    )
    assert parsed_time("1970-01-01T01:00:00+01:00", "") == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    with pytest.raises(ConfigError, match="before the year 1"):
        parsed_time("0001-01-01T00:00:00+01:00", "here")
