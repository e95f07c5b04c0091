"""Areas in filters of Qdrant: boxes, circles and polygons as dicts."""

from collections.abc import Mapping

from qinco.collection import geo, operands
from qinco.errors import ConfigError

_EXAMPLES = {
    "geo_bounding_box": '{"top_left": {"lat": 53, "lon": 13}, "bottom_right": {"lat": 52, "lon": 14}}',
    "geo_radius": '{"center": {"lat": 52.5, "lon": 13.4}, "radius": 1000}, in metres',
    "geo_polygon": '{"exterior": {"points": [{"lat": 52, "lon": 13}, ...]}, "interiors": [...]}, three points at least',
}


def area(name: str, wanted: Mapping, here: str) -> geo.Area:
    """The area of a condition; raises ConfigError with its place and an example."""
    try:
        if name == "geo_bounding_box":
            (top, left), (bottom, right) = (_point(wanted[corner]) for corner in ("top_left", "bottom_right"))
            return geo.Box(top, left, bottom, right)
        if name == "geo_radius":
            return geo.Circle(*_point(wanted["center"]), _number(wanted["radius"]))
        return geo.Polygon(_ring(wanted["exterior"]), tuple(map(_ring, wanted.get("interiors") or ())))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{here} is {operands.short(dict(wanted))}: write {_EXAMPLES[name]}") from None


def _ring(wanted: Mapping) -> tuple[geo.Point, ...]:
    points = tuple(map(_point, wanted["points"]))
    if len(points) < 3:
        raise ValueError
    return points


def _point(wanted: Mapping) -> geo.Point:
    point = geo.point_of(wanted)
    if point is None:
        raise ValueError
    return point


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError
    return float(value)
