"""Catalogue: personas, variants, weights and news files as observable assets, so that an edit shows as staleness.

Their versions are reported by `observing.py`: at the start of each run, every half minute by the sensor
`catalogue_watch`, and by `steer`. *Observe* in the UI does the same.
"""

from collections.abc import Callable
from typing import Any

import dagster as dg

from steer_pipeline.keys import PREFIX
from steer_pipeline.origins import ORIGINS, Origin, look
from steer_pipeline.partitions import PERSONA, VARIANT
from steer_pipeline.settings import settings

PARTITIONS = {"persona": PERSONA, "variant": VARIANT, None: None}


def _observable(origin: Origin) -> dg.SourceAsset:
    partitions = PARTITIONS[origin.partitions]

    def observe() -> Any:
        current = settings(anew=True)
        if partitions is None:
            return dg.DataVersion(look(origin, current, None).version)
        keys = partitions.get_partition_keys()
        return dg.DataVersionsByPartition({key: look(origin, current, key).version for key in keys})

    decorate: Callable[[Callable[[], Any]], dg.SourceAsset] = dg.observable_source_asset(
        name=origin.name,
        key_prefix=PREFIX or None,
        group_name="catalogue",
        description=origin.summary,
        partitions_def=partitions,
        io_manager_key="catalogue_io",
        tags={"steer/stage": "catalogue", "steer/device": "cpu"},
    )
    return decorate(observe)


ASSETS = [_observable(origin) for origin in ORIGINS]
