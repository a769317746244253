"""Whether a claim holds: what every gate and rule of the lab answers with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One claim, judged.

    Attributes:
        claim: its name, as the graph knows it.
        message: why, in a sentence with numbers and limits.
        blocking: False where the claim only informs about this case.
        examples: rows to look at.
        cure: how to go on in this very case, where that is not what helps against the claim's failures at large.
    """

    claim: str
    passed: bool
    message: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    blocking: bool = True
    cure: str = ""

    @property
    def stops_release(self) -> bool:
        return self.blocking and not self.passed
