"""Students: adapters that learn released packs, what they do on held-out news, and their comparison."""

from steer_pipeline.stages.students.assets import ASSETS
from steer_pipeline.stages.students.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
