"""The small project that the stage of rewrites is tested on: campaigns run over its assets."""

from steer_pipeline_tests.stages.rewrites.conftest import project

__all__ = ["project"]
