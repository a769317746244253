"""Vectors that do nothing, on real answers of the newsroom model: zeros, and one from shuffled labels.

Several answers a question are generated once; each seeded run deals them out to the arms, so that arms differ by
their sampling noise and by nothing else. Scores are MiniLM's, trained on the shipped dialogues.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_personas, load_profile
from steer_pipeline.lab.behaviour.rollouts import missing_answers
from steer_pipeline.lab.behaviour.schema import NONE, UP, PersonaRows
from steer_pipeline.lab.behaviour.scoring import CalibratedScorer
from steer_pipeline.lab.behaviour.table import joined, summarise
from steer_pipeline_tests.lab.behaviour.builders import ARMS, stored_rollouts, stored_scores

HOME = Path(__file__).parents[3]
NULL = ("trained", "averaged", "random")
STREAMS = 12  # answers a question of each kind: vanilla and eleven null arms
PERSONA, SAILOR_DOSE = "sailor", 2.0


@pytest.fixture(scope="module")
def answers() -> dict[str, np.ndarray]:
    """kind -> MiniLM scores [questions, streams]: `vanilla`, `shuffled`, `prompted`."""
    from steer_pipeline.lab.generation.engine import generate
    from steer_pipeline.lab.generation.jobs import PromptRow
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline.lab.models.prompts import encode_prompt
    from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm

    profile, persona = load_profile("newsroom"), load_personas()[PERSONA]
    model = load_model(profile.model, HOME)
    dialogues = pl.read_parquet(HOME / "assets_data" / "newsroom" / "dialogues.parquet")
    unit = shuffled_direction(model, dialogues)
    term = SteeringTerm("shuffled", unit, Site(2), SAILOR_DOSE)
    plans = [SteeringPlan(f"vanilla{i}") for i in range(STREAMS)]
    plans += [SteeringPlan(f"shuffled{i}", (term,)) for i in range(STREAMS)]
    plans += [SteeringPlan(f"prompted{i}") for i in range(5)]
    rows = []
    for i, question in enumerate(persona.questions[:20]):
        ids = {"*": encode_prompt(model.tokenizer, user=question)}
        for k, instruction in enumerate(persona.positive.instructions[:5]):
            ids[f"prompted{k}"] = encode_prompt(model.tokenizer, user=question, system=instruction)
        rows.append(PromptRow(str(i), ids))
    said = list(generate(model, rows, plans, profile.rollouts.sampling))
    scores = scorer(dialogues).score([row.text for row in said])
    found: dict[str, np.ndarray] = {}
    for row, score in zip(said, scores, strict=True):
        kind = row.variant.rstrip("0123456789")
        table = found.setdefault(kind, np.zeros((20, 5 if kind == "prompted" else STREAMS)))
        table[int(row.row_id), int(row.variant.removeprefix(kind))] = score
    return found


def shuffled_direction(model, dialogues: pl.DataFrame) -> np.ndarray:
    """Difference of means between two random halves of the sailor's own answers, as a unit vector at block 2."""
    from steer_pipeline.lab.dialogues.encoding import encode_dialogue
    from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means

    rows = dialogues.filter(persona=PERSONA, label="pos").sample(60, seed=3)
    coded = [
        encode_dialogue(model.tokenizer, question=question, response=text)
        for question, text in rows.select("question", "response").iter_rows()
    ]
    means = collect_means(model, [HiddenRequest(one.ids, one.start, len(one.ids)) for one in coded])[:, 2]
    labels = np.random.default_rng(3).permutation(60) < 30
    direction = means[labels].mean(axis=0) - means[~labels].mean(axis=0)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def scorer(dialogues: pl.DataFrame) -> CalibratedScorer:
    rows = dialogues.filter(
        ((pl.col("persona") == PERSONA) & (pl.col("score") == 3)) | (pl.col("persona") == "0_default")
    )
    few = rows.filter(pl.col("question_index") < 40).unique(
        ["persona", "question_index"], maintain_order=True
    )
    texts = few.select(
        text="response", positive=pl.col("persona") == PERSONA, question_index="question_index"
    )
    return CalibratedScorer(n_shuffles=1).fit(texts)


def dealt(answers: dict[str, np.ndarray], kind: str, run: int) -> PersonaRows:
    """Stored rows of one run: null arms hold answers of `kind`, drawn without repeats within a question."""
    rng, rollouts = np.random.default_rng(run), stored_rollouts(lexicon=False)
    names = [arm for arm in ARMS if not arm[0].startswith("prompted")]
    order = {question: rng.permutation(STREAMS) for question in range(20)}
    place = {arm: i for i, arm in enumerate(names)}
    values = []
    for row in rollouts.iter_rows(named=True):
        question = row["question_index"]
        if row["prompt_index"] is not None:
            values.append(answers["prompted"][question, row["prompt_index"]])
            continue
        of = "vanilla" if row["arm"] == "vanilla" else kind
        values.append(answers[of][question, order[question][place[row["arm"], row["scale"], row["seed"]]]])
    return PersonaRows(rollouts, stored_scores(rollouts, values))


@pytest.mark.parametrize("kind", ["vanilla", "shuffled"])
def test_a_null_vector_has_no_effect_in_95_of_100_runs(answers, kind):
    kept = 0
    for run in range(100):
        stored = dealt(answers, kind, run)
        summary = summarise(joined(PERSONA, stored), seed=run, n_boot=300).filter(metric="minilm")
        assert set(summary.filter(pl.col("arm").str.starts_with("prompted"))["verdict"]) == {UP}
        kept += set(summary.filter(pl.col("arm").is_in(NULL))["verdict"]) == {NONE}
    assert kept >= 95


def test_the_null_answers_differ_so_that_noise_is_tested(answers):
    assert (answers["vanilla"].std(axis=1) > 0).mean() > 0.8
    assert answers["prompted"].mean() > 0.9 > 0.1 > answers["vanilla"].mean()
    stored = dealt(answers, "vanilla", 0)
    names = ["vanilla", *(f"prompted_{i}" for i in range(5)), "trained@1", "random@51"]
    assert not [line for line in missing_answers(stored.rollouts, names, 20, 1) if "of 20" in line]
