"""What is made, from what, and what must hold of it: a package a stage, each with ASSETS and CHECKS."""

from steer_pipeline.stages import (
    analysis,
    behaviour,
    catalogue,
    corpus,
    diagnosis,
    heal,
    personas,
    reports,
    rewrites,
    students,
    transport,
    vectors,
)

STAGES = (
    corpus,
    diagnosis,
    personas,
    rewrites,
    vectors,
    behaviour,
    students,
    heal,
    transport,
    analysis,
    reports,
)

__all__ = ["STAGES", "catalogue"]
