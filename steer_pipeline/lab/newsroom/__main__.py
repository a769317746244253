"""`python -m steer_pipeline.lab.newsroom train|card|data`: makes what `assets_data/newsroom` ships."""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steer_pipeline.lab.newsroom", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("assets_data/newsroom/.training"), help="training folder")
    parser.add_argument("--steps", type=int, help="document steps (default: the recipe's)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train or resume the model")
    arguments = parser.parse_args()
    if arguments.command == "train":
        from steer_pipeline.lab.newsroom.training import Recipe, train

        recipe = Recipe(steps=arguments.steps) if arguments.steps else Recipe()
        for line in train(recipe, arguments.work):
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    main()
