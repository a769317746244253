"""Gate verdicts beside the pack versions that they judge: written when judged, read by whoever must obey.

In and out: the artifact store. A verdict belongs to one immutable version of `rewrite_pack`; it records what
the version was made with, so that a later run can ask whether its own recipe has passed a pilot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steer_pipeline.io.store import ArtifactStore, Version
from steer_pipeline.lab.rewrites import GATES as CLAIMS
from steer_pipeline.lab.rewrites import MATTERS_OF_JUDGEMENT
from steer_pipeline.lab.verdict import Verdict

PACK = "rewrite_pack"
GATES, RELEASED = "gates", "released"
TO_GO_ON = ". To go on: "  # between what a gate found and its cure


def record(
    store: ArtifactStore,
    variant: str,
    version: Version,
    verdicts: Sequence[Verdict],
    made_with: Mapping[str, Any],
) -> None:
    """Writes the verdicts of one version; `made_with` holds its size, recipe and profile."""
    store.annotate(
        PACK,
        variant,
        version.sha,
        GATES,
        {
            **made_with,
            "passed": not any(verdict.stops_release for verdict in verdicts),
            "gates": {
                verdict.claim: {
                    "passed": verdict.passed,
                    "blocking": verdict.blocking,
                    "message": with_cure(verdict),
                }
                for verdict in verdicts
            },
        },
    )


def failing(stored: Mapping[str, Any] | None) -> list[str]:
    """`gate: message` for each gate that stops a release; one sentence when the version was never judged."""
    if stored is None:
        return ["its gates have not run: run the job `promote`, which runs them first"]
    return [f"{name}: {gate['message']}" for name, gate in _stopping(stored).items()]


def beyond_judgement(stored: Mapping[str, Any] | None) -> list[str]:
    """Those of `failing` that nobody may overrule."""
    if stored is None:
        return failing(stored)
    return [
        f"{name}: {gate['message']}"
        for name, gate in _stopping(stored).items()
        if name not in MATTERS_OF_JUDGEMENT
    ]


def _stopping(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: gate for name, gate in stored["gates"].items() if gate["blocking"] and not gate["passed"]}


def releasable(store: ArtifactStore, variant: str, sha: str) -> bool:
    """Whether a version's stored gates all passed, or it has been released before."""
    stored = store.annotation(PACK, variant, sha, GATES)
    return bool(stored and stored["passed"]) or store.annotation(PACK, variant, sha, RELEASED) is not None


def pilot_problems(store: ArtifactStore, recipes: Mapping[str, str]) -> list[str]:
    """What stands in the way of full packs: variants whose recipe has no pilot pack with all gates passed.

    Args:
        recipes: variant -> recipe that the full pack would be made with.
    """
    problems = []
    for variant, recipe in recipes.items():
        judged = [store.annotation(PACK, variant, v.sha, GATES) for v in store.versions(PACK, variant)]
        pilots = [one for one in judged if one and one["size"] == "pilot" and one["recipe"] == recipe]
        if not pilots:
            problems.append(f"{variant}: no pilot pack of this profile, decoding and vectors has been judged")
        elif not any(pilot["passed"] for pilot in pilots):
            problems += [f"{variant}: {reason}" for reason in failing(pilots[-1])]
    return problems


def with_cure(verdict: Verdict) -> str:
    """The verdict's message; of a failed gate with how to go on."""
    cure = verdict.cure or CLAIMS[verdict.claim].cure
    return verdict.message if verdict.passed else f"{verdict.message}{TO_GO_ON}{cure}"
