"""What partial graphs of tests stand on: the observable assets of the catalogue, and the IO manager that reads it."""

import dagster as dg

from steer_pipeline.io.catalogue import CatalogueIO
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.stages.catalogue.assets import ASSETS as ORIGINS

READER = {"catalogue_io": CatalogueIO()}
# For graphs in which all that has partitions has those of the behaviour lab.
STUDIED = [
    dg.AssetSpec(name, partitions_def=TRAIT_OR_ROLE, metadata={"dagster/io_manager_key": "catalogue_io"})
    for name in ("persona_spec", "persona_scale")
]

__all__ = ["ORIGINS", "READER", "STUDIED"]
