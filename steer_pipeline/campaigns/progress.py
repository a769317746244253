"""A bar with the time that is left, on a terminal only.

In: what is to be made, and how long each of it took last time. Out: a line on stderr below the lines on stdout.
"""

import sys
from collections.abc import Iterable, Mapping

from tqdm import tqdm

Place = tuple[str, str | None]  # asset and partition


def say(line: str) -> None:
    """A line on stdout, above the bar where there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """How much of `seconds` is done; what was never timed counts like the average."""

    def __init__(self, seconds: Mapping[Place, float | None]):
        known = [each for each in seconds.values() if each]
        usual = sum(known) / len(known) if known else 1.0
        self._left = {place: each or usual for place, each in seconds.items()}
        self._bar = tqdm(
            total=sum(self._left.values()),
            bar_format="{percentage:3.0f}% |{bar:20}| {elapsed}, about {remaining} left: {desc}",
            smoothing=0,
            leave=False,
            disable=not (self._left and sys.stderr.isatty()),
        )

    def begins(self, name: str) -> None:
        """What is being made now."""
        self._bar.set_description_str(name[:50])

    def done(self, places: Iterable[Place]) -> None:
        """Made, or found fresh."""
        self._bar.update(sum(self._left.pop(place, 0.0) for place in places))

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()
