"""Commands as a shell sees them: exit status, what stands where, and what a broken catalogue does to them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steer_pipeline.environment import PACKAGE


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steer_pipeline", *arguments],
        env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(PACKAGE.parent)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    """The catalogue of the package with a typo in one persona's file."""
    copy = tmp_path_factory.mktemp("catalogue") / "catalogue"
    shutil.copytree(PACKAGE / "catalogue", copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = copy / "personas" / "rule_defiant.yaml"
    path.write_text(path.read_text().replace("positive:", "positiv:", 1))
    return copy


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("status",), "contrast_set[paranoid]: was never made"),
        (("release", "history"), ""),
        (("make", "pilot", "--dry-run"), "would make rewrite_raw[trusting]: was never made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_typo_in_one_persona_takes_no_command_down(catalogue, arguments, shown):
    done = shell(*arguments, STEER_CATALOGUE=str(catalogue))
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_what_fails_is_said_on_stderr_and_ends_with_one():
    done = shell("release", "promote", "paranoid")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("FAILED: ")
    assert "Traceback" not in done.stderr


def test_a_head_may_leave():
    command = f"set -o pipefail; '{sys.executable}' -m steer_pipeline status | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "behaviour_set[analytical]: was never made\n",
        "",
    )
