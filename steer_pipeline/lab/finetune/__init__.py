"""The one way to fine-tune, for students, heal and attribution: rows to ids, losses, LoRA on transformers' Trainer.

In: rows of prompt and completion, a model and a recipe. Out: a PEFT directory that `PeftModel.from_pretrained` loads,
with its recipe, identity and loss curves beside it. Knows nothing of personas or packs.
"""
