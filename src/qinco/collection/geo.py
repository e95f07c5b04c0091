"""Areas on the globe: boxes, circles and polygons of latitudes and longitudes in degrees. Their edges are outside."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

EARTH_RADIUS = 6371008.8  # metres, the mean one of the IUGG
Point = tuple[float, float]  # latitude and longitude


@dataclass(frozen=True)
class _Area:
    @cached_property
    def text(self) -> str:
        """All of it as JSON, which `area_of` reads."""
        return json.dumps([type(self).__name__, *astuple(self)])


@dataclass(frozen=True)
class Box(_Area):
    """Between two latitudes, and two longitudes going east; where `left` is above `right` it crosses 180°."""

    top: float
    left: float
    bottom: float
    right: float

    def holds(self, lat: float, lon: float) -> bool:
        if not self.bottom < lat < self.top:
            return False
        if self.left > self.right:
            return lon > self.left or lon < self.right
        return self.left < lon < self.right


@dataclass(frozen=True)
class Circle(_Area):
    """Nearer to a point than `radius` metres along the surface."""

    lat: float
    lon: float
    radius: float

    def holds(self, lat: float, lon: float) -> bool:
        return distance((lat, lon), (self.lat, self.lon)) < self.radius


@dataclass(frozen=True)
class Polygon(_Area):
    """Within a ring of points, and in no hole; edges are straight in degrees."""

    ring: tuple[Point, ...]
    holes: tuple[tuple[Point, ...], ...] = ()

    def holds(self, lat: float, lon: float) -> bool:
        return _is_within((lat, lon), self.ring, False) and not any(
            _is_within((lat, lon), hole, True) for hole in self.holes
        )


Area = Box | Circle | Polygon


@lru_cache(256)
def area_of(text: str) -> Area:
    """An area as it was written by `text`."""
    name, *values = json.loads(text)
    return {"Box": Box, "Circle": Circle, "Polygon": Polygon}[name](*values)


def distance(a: Point, b: Point) -> float:
    """Metres along the surface, by the haversine formula."""
    lat_a, lon_a, lat_b, lon_b = map(math.radians, (*a, *b))
    half = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(half)))


def point_of(value) -> Point | None:
    """The latitude and longitude of an object with finite numbers `lat` and `lon`; None of others."""
    if not isinstance(value, dict):
        return None
    lat, lon = (_coordinate(value.get(name)) for name in ("lat", "lon"))
    return None if lat is None or lon is None else (lat, lon)


def _coordinate(value) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _is_within(point: Point, ring: Sequence[Point], has_edge: bool) -> bool:
    """Whether a point is in a ring, by the number of edges that a ray from it crosses; on an edge, `has_edge`."""
    y, x = point
    is_inside = False
    for (y_a, x_a), (y_b, x_b) in pairwise([ring[-1], *ring]):
        is_between = min(y_a, y_b) <= y <= max(y_a, y_b) and min(x_a, x_b) <= x <= max(x_a, x_b)
        if is_between and (x_b - x_a) * (y - y_a) == (y_b - y_a) * (x - x_a):
            return has_edge
        if (x_a > x) != (x_b > x) and y < (y_b - y_a) * (x - x_a) / (x_b - x_a) + y_a:
            is_inside = not is_inside
    return is_inside
