"""The newsroom: a seeded world of news, and a small language model of it that can be steered by design.

A model organism. The world writes articles, rewrites, dialogues, vignettes and word games whose ground
truth is known; `training` teaches them to a stock Qwen3 of about three million parameters.
"""
