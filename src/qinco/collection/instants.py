"""Instants: RFC 3339 text and datetimes as microseconds since 1970 in UTC."""

import datetime
import re

from qinco.errors import ConfigError

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST_SECOND = 253_402_300_799  # of the year 9999
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))?)?"
)


def microseconds(time: datetime.datetime) -> int:
    """Microseconds since 1970; a time without zone is taken to be in UTC."""
    return (time.replace(tzinfo=time.tzinfo or datetime.UTC) - _EPOCH) // datetime.timedelta(microseconds=1)


def instant(text: str) -> int | None:
    """RFC 3339 text as microseconds since 1970, None for other text; a date is its first instant.

    Example:
        >>> instant("1970-01-01T02:00:00+02:00")
        0
    """
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    *numbers, fraction, sign, hours, minutes = found.groups()
    year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
    try:
        time = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)
    except ValueError:
        return None
    seconds = (time - _EPOCH) // datetime.timedelta(seconds=1)
    if sign:
        if int(hours) > 14 or int(minutes) > 59:
            return None
        seconds -= int(sign + "1") * (int(hours) * 3600 + int(minutes) * 60)
    if seconds > _LAST_SECOND:
        return None
    return seconds * 1_000_000 + int((fraction or "")[:6].ljust(6, "0"))


def parsed_time(text: str, place: str) -> datetime.datetime:
    """RFC 3339 text as a datetime; raises ConfigError, which begins with `place`."""
    found = instant(text)
    if found is None:
        raise ConfigError(
            f"{place} is {text!r:.40}, to be compared with times: write RFC 3339, as in 2024-05-01T12:00:00Z"
        )
    try:
        return _EPOCH + datetime.timedelta(microseconds=found)
    except OverflowError:
        raise ConfigError(f"{place} is {text!r:.40}, before the year 1 in UTC: write a later time") from None
