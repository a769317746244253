"""Behaviour rollouts: arms, texts, scores and the table that says what had an effect."""
