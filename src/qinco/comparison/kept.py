"""Parts of a comparison in files, each written when it is measured, from which an interrupted comparison goes on."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qinco.atomic import write_atomically
from qinco.machine import num_threads, processor_name
from qinco.progress import Progress
from qinco.version import __version__


class Kept:
    """Parts in files of a folder; what was measured under other conditions is measured again.

    Args:
        folder: made when a part is written.
        conditions: JSON values that all parts depend on, besides version, processor and threads.
        tell: hears of progress.

    Example:
        >>> kept = Kept(Path("report/parts"), {"metric": "l2"}, tell)
        >>> exact = kept.part("exact", {"seconds": 1.0}, partial(time_exact, problem))
    """

    def __init__(self, folder: Path, conditions: dict, tell: Progress):
        self._folder, self._tell = folder, tell
        self._conditions = conditions | {
            "qinco": __version__, "processor": processor_name(), "threads": num_threads(), "format": 1
        }  # fmt: skip

    def part(self, name: str, conditions: dict, measure: Callable[..., Any]) -> Any:
        """What the file of this name holds, or what `measure(progress=...)` gives, which is then written to it."""
        held = self._read(name, conditions)
        if held is not None and held["is_complete"]:
            return held["result"]
        result = measure(progress=self._tell)
        self._write(name, conditions, result, True)
        return result

    def begun(self, name: str, conditions: dict) -> Any:
        """What there is of a part that was not completed, or None."""
        held = self._read(name, conditions)
        return None if held is None else held["result"]

    def saver(self, name: str, conditions: dict) -> Callable[[Any], None]:
        """A function that writes what there is of a part so far."""
        return lambda result: self._write(name, conditions, result, False)

    def _read(self, name: str, conditions: dict) -> dict | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(self._path(name).read_text("utf-8"))
            if held["conditions"] == json.loads(json.dumps(self._conditions | conditions)):
                return {"result": held["result"], "is_complete": held["is_complete"]}
        return None

    def _write(self, name: str, conditions: dict, result: Any, is_complete: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"conditions": self._conditions | conditions, "is_complete": is_complete, "result": result}
        with write_atomically(self._path(name)) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
