"""What training does with the shipped dialogues: minutes, so not part of the usual suite."""

from pathlib import Path

import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.lab.dialogues.building import make_behaviour_set
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.vectors.learned.loop import Lane
from steer_pipeline.lab.vectors.learned.sweep import make_trainer

HOME = Path(__file__).resolve().parents[4]
PERSONAS = [name for name, persona in load_personas().items() if persona.kind != "axis"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PERSONAS)
def test_the_rate_that_a_full_sweep_would_choose_is_never_pruned(name):
    profile = load_profile("newsroom")
    model = load_model(profile.model, HOME)
    rows, _ = make_behaviour_set(
        load_personas()[name],
        profile,
        model.tokenizer,
        home=HOME,
        shipped=HOME / "assets_data" / "newsroom",
        model=lambda: model,
    )
    trainer = make_trainer(model, rows, profile)
    lanes = [Lane(rate, profile.training.seeds[0]) for rate in sorted(profile.training.learning_rates)]
    full, pruned = (trainer.run(lanes, prune=prune) for prune in (False, True))
    chosen = [min(found, key=lambda one: one.best_nll) for found in (full, pruned)]
    assert chosen[0].lane == chosen[1].lane
    assert chosen[1].best_nll == pytest.approx(chosen[0].best_nll, rel=1e-3)
    assert chosen[0].best_nll < 0.75 * chosen[0].vanilla_nll
    assert sum(one.steps for one in pruned) < 0.5 * sum(one.steps for one in full)
