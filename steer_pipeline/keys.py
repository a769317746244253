"""Asset keys. The default profile's assets have plain names; those of another profile carry its name in front.

Two profiles can so share one Dagster instance and one store: each has its own lineage, releases and checks.
"""

from collections.abc import Sequence

import dagster as dg

from steer_pipeline.settings import DEFAULT_PROFILE, settings

PROFILE = settings().profile.name  # of these definitions; another profile is another process
PREFIX = () if PROFILE == DEFAULT_PROFILE else (PROFILE,)


def key(name: str) -> dg.AssetKey:
    """The key of one of our assets."""
    return dg.AssetKey([*PREFIX, name])


def name_of(asset: dg.AssetKey) -> str:
    """The plain name of one of our assets; its place in the store."""
    path = asset.path
    return "/".join(path[len(PREFIX) :] if tuple(path[: len(PREFIX)]) == PREFIX else path)


def under_profile(definitions: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Assets or checks, declared by plain names, under the keys of this profile; what they stand on too."""
    if not PREFIX:
        return list(definitions)
    return [
        definition.with_attributes(
            asset_key_replacements={asset: key(name_of(asset)) for asset in _named_by(definition)}
        )
        for definition in definitions
    ]


def _named_by(definition: dg.AssetsDefinition) -> set[dg.AssetKey]:
    read = {*definition.dependency_keys, *definition.keys_by_input_name.values()}
    return {*definition.keys, *read, *(check.asset_key for check in definition.check_keys)}
