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
from steer_pipeline.stages.behaviour import judging, rollouts
from steer_pipeline.stages.behaviour import table as behaviour_table
from steer_pipeline.stages.catalogue import assets as catalogue
from steer_pipeline.stages.corpus import assets as corpus
from steer_pipeline.stages.corpus import checks as corpus_checks
from steer_pipeline.stages.personas import assets as personas
from steer_pipeline.stages.personas import checks as persona_checks
from steer_pipeline.stages.reports import assets as reports
from steer_pipeline.stages.reports import checks as report_checks
from steer_pipeline.stages.rewrites import assets as rewrites
from steer_pipeline.stages.rewrites import checks as rewrite_checks
from steer_pipeline.stages.vectors import comparing, training
from steer_pipeline.stages.vectors import data as behaviour_data

store = ArtifactStoreResource()
LAB = (behaviour_data, training, comparing, rollouts, judging, behaviour_table)  # vectors and behaviour
MADE = [
    *corpus.ASSETS,
    *personas.ASSETS,
    *rewrites.ASSETS,
    *(asset for module in LAB for asset in module.ASSETS),
    *reports.ASSETS,
]

defs = dg.Definitions(
    assets=[*catalogue.ASSETS, *under_profile(with_conditions(MADE))],
    asset_checks=under_profile(
        [
            *corpus_checks.CHECKS,
            *persona_checks.CHECKS,
            *rewrite_checks.CHECKS,
            *(check for module in LAB for check in module.CHECKS),
            *report_checks.CHECKS,
        ]
    ),
    resources={
        "store": store,
        "parquet_io": ParquetIO(store=store),
        "bundle_io": BundleIO(store=store),
        "catalogue_io": CatalogueIO(),
        "language_model": LanguageModelResource(),
        "judge": JudgeResource(),
    },
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    executor=EXECUTOR,
)
