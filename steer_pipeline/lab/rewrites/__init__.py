"""Rewrite packs: what to generate, which gates a pack must pass, what is worth keeping, how variants compare."""
