"""When assets are made without being asked: cheap ones after their inputs, and only past blocking checks.

Applied to all assets in one place. Never automatic: what costs the accelerator or a judge's fee, what has no
inputs, and a release, which is a decision.
"""

from collections.abc import Sequence

import dagster as dg

DECISIONS = {dg.AssetKey("rewrite_release"), dg.AssetKey("judge_scores")}

# eager() alone also fires when a blocking check of an input has failed in another run.
AFTER_PASSED_INPUTS = (
    dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("after_passed_inputs")


def with_conditions(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The same assets, the cheap ones with their condition."""
    return [asset.map_asset_specs(_with_condition) for asset in assets]


def _with_condition(spec: dg.AssetSpec) -> dg.AssetSpec:
    cheap = spec.tags.get("steer/device") == "cpu"
    if not cheap or not list(spec.deps) or spec.key in DECISIONS:
        return spec
    return spec.replace_attributes(automation_condition=AFTER_PASSED_INPUTS)
