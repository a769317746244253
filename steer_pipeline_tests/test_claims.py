"""Every number of the README has a command: the list of claims quotes what stands there, and forgets no interval."""

import re
from pathlib import Path

from steer_pipeline.cli.main import VERBS

HOME = Path(__file__).parents[1]
README = (HOME / "README.md").read_text()
INTERVAL = re.compile(r"\[[-+]?\d[\d.]*, [-+]?\d[\d.]*\]")
SCALES = ("[-1, 1]",)  # bounds of a scale: no result


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def claims() -> list[tuple[str, str]]:
    """(what is quoted, command) of every row."""
    lines = (HOME / "docs" / "CLAIMS.md").read_text().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")
    ]
    return [(row[0].strip(), row[1]) for row in cells[1:]]


def prose() -> str:
    """The README without code blocks, tables and quoted news."""
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return flat("\n".join(line for line in text.splitlines() if not line.startswith(("|", "**"))))


def test_what_is_quoted_stands_in_the_readme():
    readme = flat(README)
    assert len(claims()) > 30
    assert [quote for quote, _ in claims() if flat(quote) not in readme] == []


def test_every_command_exists():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (HOME / "Makefile").read_text(), flags=re.MULTILINE))
    for _, command in claims():
        for line in re.findall(r"`([^`]+)`", command):
            tool, verb = line.split()[:2]
            assert verb in (targets if tool == "make" else set(VERBS)), line


def test_no_interval_in_the_prose_is_without_its_command():
    quoted = " ".join(flat(quote) for quote, _ in claims())
    found = [one for one in INTERVAL.findall(prose()) if one not in SCALES]
    assert len(found) > 8
    assert [one for one in found if one not in quoted] == []
