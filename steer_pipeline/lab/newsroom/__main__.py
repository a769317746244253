"""Makes what `assets_data/newsroom` ships: the news, the model, and the model's card."""

import argparse
import json
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steer_pipeline.lab.newsroom", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("assets_data/newsroom"), help="what is shipped")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="write news.parquet and facts.parquet")
    train_command = commands.add_parser(
        "train", help="train or resume the model, then install it in the folder"
    )
    train_command.add_argument("--work", type=Path, help="checkpoints (default: FOLDER/.training)")
    card_command = commands.add_parser("card", help="measure the shipped model and write its card")
    card_command.add_argument("--items", type=int, default=96, help="held-out items an ability")
    arguments = parser.parse_args()
    folder: Path = arguments.folder

    if arguments.command == "data":
        from steer_pipeline.lab.newsroom.shipping import ship

        ship(folder, seed=20)
    elif arguments.command == "train":
        from steer_pipeline.lab.newsroom.training import Recipe, train

        work = arguments.work or folder / ".training"
        for line in train(Recipe(), work):
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
        shutil.copytree(work / "model", folder / "model", dirs_exist_ok=True)
        shutil.copy2(work / "planted_directions.safetensors", folder)
    else:
        from steer_pipeline.lab.newsroom.card import write_card
        from steer_pipeline.lab.newsroom.training import Recipe

        print(json.dumps(write_card(folder, Recipe(), arguments.items), indent=1))


if __name__ == "__main__":
    main()
