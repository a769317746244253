"""Gate verdicts beside the pack versions that they judge: written at check time, read by whoever must obey.

In and out: the artifact store. A verdict belongs to one immutable version of `rewrite_pack`; it records what
the version was made with, so that a later run can ask whether its own recipe has passed a pilot.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steer_pipeline.io.store import ArtifactStore, Version

if TYPE_CHECKING:
    from steer_pipeline.lab.verdict import Verdict

PACK = "rewrite_pack"
GATES, RELEASED = "gates", "released"


def record(
    store: ArtifactStore,
    variant: str,
    version: Version,
    verdicts: "Sequence[Verdict]",
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
                    "message": verdict.message,
                }
                for verdict in verdicts
            },
        },
    )


def failing(gates: Mapping[str, Any] | None) -> list[str]:
    """`gate: message` for each gate that stops a release; one sentence when the version was never judged."""
    if gates is None:
        return ["its gates have not run: run the job `promote`, which runs them first"]
    return [
        f"{name}: {gate['message']}"
        for name, gate in gates["gates"].items()
        if gate["blocking"] and not gate["passed"]
    ]


def releasable(store: ArtifactStore, variant: str, sha: str) -> bool:
    """Whether a version's stored gates all passed, or it has been released before."""
    gates = store.annotation(PACK, variant, sha, GATES)
    return bool(gates and gates["passed"]) or store.annotation(PACK, variant, sha, RELEASED) is not None


def pilot_problems(store: ArtifactStore, recipes: Mapping[str, str]) -> list[str]:
    """What stands in the way of full packs: variants whose recipe has no pilot pack with all gates passed.

    Args:
        recipes: variant -> recipe that the full pack would be made with.
    """
    problems = []
    for variant, recipe in recipes.items():
        judged = [store.annotation(PACK, variant, v.sha, GATES) for v in store.versions(PACK, variant)]
        pilots = [g for g in judged if g and g["size"] == "pilot" and g["recipe"] == recipe]
        if not pilots:
            problems.append(f"{variant}: no pilot pack of this profile, decoding and vectors has been judged")
        elif not any(gates["passed"] for gates in pilots):
            problems += [f"{variant}: {reason}" for reason in failing(pilots[-1])]
    return problems
