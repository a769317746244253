"""What is made, from what, and what must hold of it: a package a stage, each with ASSETS and CHECKS."""

from steer_pipeline.stages import (
    attribution,
    behaviour,
    catalogue,
    corpus,
    diagnosis,
    heal,
    personas,
    reports,
    rewrites,
    sae,
    students,
    transport,
    vectors,
    word_games,
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
    word_games,
    attribution,
    sae,
    reports,
)

__all__ = ["STAGES", "catalogue"]
