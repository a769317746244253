"""How many rows a profile's limits need before they mean something. In: a profile. Out: a sentence a limit."""

from collections.abc import Iterator
from dataclasses import dataclass

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.stats.shares import at_most, passes, rows_to_exclude


@dataclass(frozen=True)
class Need:
    """One limit on a share of rows.

    Attributes:
        limit: largest share allowed; `field` of the profile.
        rows: that it is judged on, as `where` says.
    """

    field: str
    limit: float
    rows: int
    where: str

    @property
    def wanted(self) -> int:
        """Rows that exclude a larger share, if none of them is a hit."""
        return rows_to_exclude(self.limit)

    def sentence(self) -> str:
        """Wanted and given rows; what those given exclude, and how often they let twice the limit pass."""
        message = f"{self.field} {self.limit:.2g} needs {self.wanted} rows without a hit, {self.where} has {self.rows}"
        if self.rows >= self.wanted:
            return message
        twice = min(1.0, 2 * self.limit)
        return (
            f"{message}: these exclude no share below {at_most(0, self.rows):.1%}, and one of {twice:.0%} passes "
            f"in {passes(twice, self.rows, self.limit):.0%} of cases"
        )


def row_needs(profile: Profile) -> Iterator[Need]:
    """What the limits on shares of rows need, in the order of the profile; a limit of 0 needs more than any number."""
    gates, coherence, dose, sizes = profile.gates, profile.coherence, profile.dose, profile.rewrites
    pilot, swept = (sizes.pilot_rows, "a pilot pack"), (dose.n_rows, "dose_curve")
    for field, limit, (rows, where) in (
        ("gates.max_suspect_rate", gates.max_suspect_rate, pilot),
        ("gates.max_extra_suspects", gates.max_extra_suspects, pilot),
        ("coherence.max_extra_suspects", coherence.max_extra_suspects, swept),
        ("coherence.max_extra_loops", coherence.max_extra_loops, swept),
        ("dose.max_suspect_rate", dose.max_suspect_rate, swept),
    ):
        if limit:
            yield Need(field, limit, rows, where)
