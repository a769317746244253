"""A bar with the time that is left, on a terminal only.

In: what is to be made, and how long each of it took last time. Out: a line on stderr below those on stdout. The long
steps show bars of their own below it.
"""

import sys
import time
from collections.abc import Iterable, Mapping

from tqdm import tqdm

Place = tuple[str, str | None]  # asset and partition


def say(line: str) -> None:
    """A line on stdout, above the bar where there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """How much of `seconds` is done; what was never timed counts like the average.

    The time left is what is left of `seconds` at the pace so far; before anything is done, at that of the last time.
    """

    def __init__(self, seconds: Mapping[Place, float | None]):
        known = [each for each in seconds.values() if each]
        usual = sum(known) / len(known) if known else 1.0
        self._left = {place: each or usual for place, each in seconds.items()}
        self._begun, self._pace, self._name = time.monotonic(), 1.0 if known else None, ""
        self._bar = tqdm(
            total=sum(self._left.values()),
            bar_format="{percentage:3.0f}% |{bar:20}| {elapsed}{desc}",
            leave=False,
            disable=not (self._left and sys.stderr.isatty()),
        )

    def begins(self, name: str) -> None:
        """What is being made now."""
        self._name = name[:50]
        self._show()

    def done(self, places: Iterable[Place]) -> None:
        """Made, or found fresh."""
        self._bar.update(sum(self._left.pop(place, 0.0) for place in places))
        if self._bar.n:
            self._pace = (time.monotonic() - self._begun) / self._bar.n
        self._show()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def _show(self) -> None:
        left = ""
        if self._pace is not None:
            left = f", about {tqdm.format_interval(sum(self._left.values()) * self._pace)} left"
        self._bar.set_description_str(f"{left}: {self._name}")
