"""Vectors between models: a linear map fitted on matched texts carries a direction over, and what it does there counts.

`maps` fits maps on arrays, `matching` reads two models on the same texts, `measuring` adds what was carried to the
target beside the target's own vector and random rotations, `shares` makes tables of the rows, `claims` judges them.
"""

from steer_pipeline.lab.transport.maps import Map, MapError, fit_map, random_rotation

__all__ = ["Map", "MapError", "fit_map", "random_rotation"]
