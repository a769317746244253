"""Claims about the GPU script: it needs the model libraries alone, and it runs on a machine without a GPU."""

import json
import subprocess
import sys

import pytest

BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("polars", "dagster", "matplotlib", "duckdb", "pyarrow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import benchmarks.gpu
"""


def test_it_is_imported_where_only_the_model_libraries_are():
    subprocess.run([sys.executable, "-c", BARE], check=True)


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu_ends_with_finite_numbers():
    command = [sys.executable, "-m", "benchmarks.gpu", "--shape", "tiny", "--device", "cpu"]
    sizes = ["--rows", "16", "--prompt-tokens", "60", "--new-tokens", "8", "--rounds", "1"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parity"] == {"equal_texts": 1.0, "worst_cosine": 1.0}
    assert found["finite_float16"] is found["finite_bfloat16"] is True
    assert found["eight_over_unsteered"] > 0
