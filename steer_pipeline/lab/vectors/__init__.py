"""Persona vectors: the type, other tools' formats, and the ways to make one (extracted, averaged, learned, published).

In: hidden states, scored dialogues or files. Out: `PersonaVector`s, and `SteeringPlan`s with every dose resolved.
"""
