"""The trait scales that students are scored on: the only place of this package that knows where they come from."""

from collections.abc import Mapping, Sequence

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.rewrites.stored import scorers


def student_scorers(
    read: Reader, personas: Sequence[str], profile: Profile
) -> dict[str, Mapping[str, TraitScorer]]:
    """persona -> scale -> scorer, those of the comparison of packs."""
    return scorers(read, profile, personas)
