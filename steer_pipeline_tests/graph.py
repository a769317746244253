"""The asset graph as text: what a reviewer should see change when the graph changes.

Write the committed copy anew with `python -m steer_pipeline_tests.graph > steer_pipeline_tests/graph.txt`.
"""

import dagster as dg

from steer_pipeline.lineage import sections_of


def graph_text(defs: dg.Definitions) -> str:
    """Assets with their policies, inputs and checks; jobs, schedules and sensors. Sorted, one fact a line."""
    graph = defs.resolve_asset_graph()
    pools = {key: asset.op.pool for asset in graph.assets_defs if asset.is_executable for key in asset.keys}
    lines = []
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        partitions = node.partitions_def
        lines += [
            key.to_user_string(),
            f"  group {node.group_name}, {', '.join(node.owners)}, kinds {' '.join(sorted(node.kinds))}",
            f"  code {_code(node.code_version)}, pool {pools.get(key) or 'none'}, tags "
            + " ".join(
                f"{name}={value}" for name, value in sorted(node.tags.items()) if "/kind/" not in name
            ),
        ]
        if partitions:
            policy = node.backfill_policy
            single = policy is not None and policy.max_partitions_per_run is None
            lines.append(
                f"  partitions {' '.join(partitions.get_partition_keys())}{', single run' if single else ''}"
            )
        if node.automation_condition:
            lines.append(f"  automation {node.automation_condition.get_label()}")
        for parent in sorted(node.parent_keys):
            mapping = node.partition_mappings.get(parent)
            how = f" by {type(mapping).__name__}" if mapping else ""
            lines.append(f"  from {parent.to_user_string()}{how}")
        for check in sorted(node.check_keys):
            spec = graph.get_check_spec(check)
            scope = ", each partition" if spec.partitions_def else ""
            lines.append(f"  check {check.name}{' BLOCKS' if spec.blocking else ''}{scope}")
    for job in sorted(defs.jobs or [], key=lambda job: job.name):
        resolved = defs.resolve_job_def(job.name)
        steps = sorted(node.name for node in resolved.graph.nodes)
        lines += [f"job {job.name}", f"  {' '.join(steps)}"]
    lines += [
        f"schedule {each.name} {each.cron_schedule} {each.default_status.name}"
        for each in defs.schedules or []
    ]
    lines += [f"sensor {each.name} {each.default_status.name}" for each in defs.sensors or []]
    return "\n".join(lines) + "\n"


def _code(version: str | None) -> str:
    """The number of the code and the names of the profile's sections; their hashes change with the profile."""
    return "none" if version is None else " ".join([version.split(" ")[0], *sections_of(version)])


if __name__ == "__main__":
    from steer_pipeline.definitions import defs

    print(graph_text(defs), end="")
