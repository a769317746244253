"""Where steps run: the pool and tags of assets that want an accelerator, retries, and the executor.

The tags of other launchers are inert where nobody reads them, so the same asset runs on a laptop, a GPU
machine, Ray and Kubernetes. Step executors read these tags; run launchers read those of the run, so the
instance files in deploy/ ask for the accelerator themselves.
"""

import warnings

import dagster as dg

# Parts of Dagster that we use on purpose while they are a preview, and jobs that backfill one run a
# partition although an asset in them can do all in one: nothing that a user could act on.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", message=r"Asset job \S+ materializes assets with varying BackfillPolicies")

GPU_POOL = "gpu"
GPU_TAGS: dict[str, object] = {
    "steer/device": "gpu",
    "dagster-ray/config": {"num_gpus": 1},
    "dagster-k8s/config": {
        "container_config": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    },
    "dagster-celery/queue": "gpu",
}

# For assets that read a network: a hub, an object store, a judge.
RETRY_NETWORK = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL)

# One process a run: a model is loaded once and kept, whatever the number of steps.
EXECUTOR = dg.in_process_executor
