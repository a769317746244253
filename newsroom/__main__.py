"""Makes what `assets_data/newsroom` ships: the news, the model, its card, and scored dialogues."""

import argparse
import json
import shutil
from pathlib import Path

from newsroom.training import RECIPES

SHIPPED = {"first": Path("assets_data/newsroom"), "second": Path("assets_data/newsroom/second")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m newsroom", description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        help="what is shipped (default: assets_data/newsroom, for another recipe below it)",
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default="first", help="which model: of another seed, width and depth"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="write news.parquet and facts.parquet")
    train_command = commands.add_parser(
        "train", help="train or resume the model, then install it in the folder"
    )
    train_command.add_argument("--work", type=Path, help="checkpoints (default: FOLDER/.training)")
    card_command = commands.add_parser("card", help="measure the shipped model and write its card")
    card_command.add_argument("--items", type=int, default=96, help="held-out items an ability")
    commands.add_parser("dialogues", help="let the shipped model answer, and write dialogues.parquet")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    folder: Path = arguments.folder or SHIPPED[arguments.recipe]

    if arguments.command == "data":
        from newsroom.shipping import ship

        ship(folder, seed=20)
    elif arguments.command == "train":
        from newsroom.training import train

        work = arguments.work or folder / ".training"
        for line in train(recipe, work):
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
        shutil.copytree(work / "model", folder / "model", dirs_exist_ok=True)
        shutil.copy2(work / "planted_directions.safetensors", folder)
    elif arguments.command == "dialogues":
        from newsroom.dialogues import ship_dialogues
        from steer_pipeline.catalogue import load_profile
        from steer_pipeline.lab.models.loading import load_model

        rows = ship_dialogues(folder, load_model(load_profile("newsroom").model, Path.cwd()), seed=30)
        print(
            rows.group_by("persona", "label", "score_status").len().sort("persona", "label", "score_status")
        )
    else:
        from newsroom.card import write_card

        print(json.dumps(write_card(folder, recipe, arguments.items), indent=1))


if __name__ == "__main__":
    main()
