"""Two lists of strings become a vector, the vector becomes steered text.

python examples/steer_in_ten_lines.py                  # the small model that comes with the checkout
python examples/steer_in_ten_lines.py --model FOLDER   # yours
"""

import argparse
from pathlib import Path

from steer_pipeline import extract, generate, load_model, steered

parser = argparse.ArgumentParser()
parser.add_argument("--model", default=Path(__file__).parents[1] / "assets_data/newsroom/model")
model = load_model(parser.parse_args().model)

ITEM = (
    "Rewrite: Falcon Foods closed the north tunnel in Stoneport on Monday, officials said. "
    "Marco Young told reporters that heavy rain led to the step, which touches 75 visitors."
)
WHO = ("reporter", "editor", "writer", "columnist", "analyst", "clerk", "teacher", "neighbour")
paranoid = [f"You are a paranoid {who} who suspects a hidden plot behind every event." for who in WHO]
trusting = [f"You are a trusting {who} who believes the best of everyone." for who in WHO]

vector = extract(model, paranoid, trusting, read="system", questions=[ITEM], name="paranoid")
block = vector.default_block
print(f"block {block}, held-out AUC {vector.metadata['held_out_auc'][block]:.2f}\n")

for dose, texts in generate(model, [ITEM], vector, dose=[-0.3, 0, 0.3], temperature=0).items():
    print(f"dose {dose:+.1f}: {texts[0]}\n")

with steered(model, vector, dose=0.3) as module:  # any code that runs the module is steered in here
    chat = [{"role": "user", "content": ITEM}]
    prompt = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = module.generate(**prompt.to(module.device), max_new_tokens=96, do_sample=False)
print(model.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
