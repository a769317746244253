"""What `steer release` does: promote and roll back, each a materialisation of `rewrite_release`."""

from collections.abc import Sequence

from steer_pipeline.campaigns.driver import Driver, Outcome
from steer_pipeline.campaigns.errors import Stopped
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.rewrites import GATES, release
from steer_pipeline.lab.rewrites.release import RELEASE, Action, Entry
from steer_pipeline.stages.rewrites.history import history


def promote(driver: Driver, variant: str, despite: str | None = None) -> Outcome:
    """Runs the gates of the newest pack, as it lies there, and releases it if they pass.

    Args:
        despite: why to release it although gates fail that are a matter of judgement. They are run all the same, so
            that what is overruled is what they say today; where all pass, nothing is overruled.
    """
    checks = [("rewrite_pack", gate) for gate in GATES]
    asked = {"action": "promote"}
    judged = driver.materialize([RELEASE], checks=checks, partition=variant, config={RELEASE: asked})
    if despite is None or not judged.stopped_by or judged.errors:
        return judged
    return driver.materialize([RELEASE], partition=variant, config={RELEASE: asked | {"despite": despite}})


def rollback(driver: Driver, variant: str, to: str | None = None) -> Outcome:
    """Releases the version `to` (a hash or its beginning), or goes back one step in the history.

    Without an earlier release the outcome's error says so.
    """
    asked = {"action": "rollback", **({"version": to} if to else {})}
    return driver.materialize([RELEASE], partition=variant, config={RELEASE: asked})


def foretold(
    driver: Driver,
    store: ArtifactStore,
    variant: str,
    action: Action,
    to: str | None = None,
    despite: str | None = None,
) -> str:
    """What would be released, in a sentence.

    Raises:
        Stopped: it would be refused.
    """
    try:
        if action == "rollback" and to is None:
            to = release.former(history(driver.instance, store, variant), variant)
        choice = release.choose(store, variant, action, to, despite)
    except (ValueError, LookupError) as error:
        raise Stopped(str(error)) from error
    if choice.action == "keep":
        return f"{variant}: {choice.version.sha} is released already"
    if choice.overruled is not None:
        return f"would release {variant} {choice.version.sha} {choice.overruled}; before: {choice.previous}"
    gates = ", if its gates pass" if action == "promote" else ""
    return f"would release {variant} {choice.version.sha}{gates}; before: {choice.previous}"


def shown(entries: Sequence[Entry]) -> str:
    """The history for people, a line an entry."""
    return "\n".join(
        f"{entry.when:%Y-%m-%d %H:%M:%S}  {entry.variant:<24} {entry.action:<9} {entry.version}  "
        f"before: {entry.previous:<16}  {entry.rows} rows  run {entry.run_id[:8]}"
        + ("" if entry.carried_out else "  NOT CARRIED OUT: the run ended before the pointer moved")
        + ("" if entry.overruled is None else f"\n    {entry.overruled}")
        for entry in entries
    )
