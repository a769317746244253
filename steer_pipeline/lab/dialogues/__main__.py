"""Brings a published persona into the catalogue: its trait or role file becomes `personas/<name>.yaml`."""

import argparse
import os
from pathlib import Path

from steer_pipeline.environment import catalogue_folder
from steer_pipeline.lab.vectors.formats import import_trait_file, persona_yaml


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m steer_pipeline.lab.dialogues", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import-persona", help="write a catalogue file from a trait or role JSON")
    command.add_argument("file", type=Path, help="JSON with instruction, questions and eval_prompt")
    command.add_argument("--name", help="default: the file's stem")
    command.add_argument("--opposite", default="helpful", help="adjective of a trait's negative pole")
    command.add_argument("--summary", help="one line for the UI")
    command.add_argument(
        "--folder", type=Path, default=catalogue_folder() / "personas", help="where catalogue files are"
    )
    given = parser.parse_args(arguments)

    try:
        persona = import_trait_file(
            given.file, name=given.name, opposite=given.opposite, summary=given.summary
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    target: Path = given.folder / f"{persona.name}.yaml"
    if target.exists():
        parser.exit(1, f"{target} is there already; remove it, or give another --name\n")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(persona_yaml(persona), encoding="utf-8")
    part.replace(target)
    print(f"{target}: {persona.kind} {persona.name}, {len(persona.questions)} questions for rollouts")


if __name__ == "__main__":
    main()
