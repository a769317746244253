"""The asset graph: stages, resources, automation and the executor. Start reading at stages/<stage>/assets.py."""

import dagster as dg

from steer_pipeline.automation.conditions import with_conditions
from steer_pipeline.automation.jobs import JOBS
from steer_pipeline.automation.schedules import SCHEDULES
from steer_pipeline.automation.sensors import SENSORS
from steer_pipeline.execution import EXECUTOR
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.catalogue import CatalogueIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.keys import under_profile
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.stages import STAGES, catalogue

store = ArtifactStoreResource()

defs = dg.Definitions(
    assets=[
        *catalogue.ASSETS,
        *under_profile(with_conditions([asset for stage in STAGES for asset in stage.ASSETS])),
    ],
    asset_checks=under_profile([check for stage in STAGES for check in stage.CHECKS]),
    resources={
        "store": store,
        "parquet_io": ParquetIO(store=store),
        "bundle_io": BundleIO(store=store),
        "catalogue_io": CatalogueIO(),
        "language_model": LanguageModelResource(),
        "judge": JudgeResource(),
        "definitions": dg.ResourceDefinition.hardcoded_resource(lambda: defs),
    },
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    executor=EXECUTOR,
)
