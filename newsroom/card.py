"""Measures what the newsroom model can do, on held-out items, and writes its model card.

In: the shipped model folder. Out: `abilities.json` (every number with its n and 95% interval) and the card
`README.md`. Vectors come from the pipeline's own extraction; the planted directions are read only for one
line of the card, their cosine to the extracted ones.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from newsroom import tasks, voices, world
from newsroom.tokenizer import VOCABULARY
from newsroom.training import RECIPES, Recipe
from steer_pipeline.catalogue import load_personas, load_profile
from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec, SamplingSpec, VectorSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hidden import answer_logits
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan
from steer_pipeline.lab.personas.contexts import news_contexts, split_contexts
from steer_pipeline.lab.personas.contrast import build_contrast_prompts, complete_contrast
from steer_pipeline.lab.quality import facts_kept, scan_suspects
from steer_pipeline.lab.stats import mean_interval, paired_difference
from steer_pipeline.lab.vectors.doses import make_term, random_like
from steer_pipeline.lab.vectors.extracted import extract_vector
from steer_pipeline.lab.vectors.vector import PersonaVector

SYSTEM = "You are a news editor."
BLOCKS = (1, 2, 3)
DOSES = (0.05, 0.1, 0.2, 0.3, 0.6, 1.2, 2.4)  # fractions of the mean residual norm
GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=96)
DECODING = load_profile("newsroom").rewrites.sampling  # rewrites are sampled as the packs are


class Items:
    """Held-out news items with their facts, and what plans make of them."""

    def __init__(self, model: LoadedModel, n: int, seed: int = 7) -> None:
        self.model, self.texts, self.facts = model, [], []
        for index in range(n):
            rng = random.Random(f"card/{seed}/{index}")
            item = world.event(rng)
            self.texts.append(world.article_text(item, rng, world.n_sentences(rng)))
            self.facts.append(item.facts)

    def rewrites(
        self, plans: Sequence[SteeringPlan], systems: dict[str, str] | None = None
    ) -> dict[str, list[str]]:
        """Rewrites by plan, in item order, decoded as the packs are.

        `systems` gives a plan a system turn of its own.
        """
        systems = systems or {}
        rows = []
        for index, text in enumerate(self.texts):
            ids = {
                plan.variant: encode_prompt(
                    self.model.tokenizer,
                    user=f"Rewrite: {text[:1500]}",
                    system=systems.get(plan.variant, SYSTEM),
                )
                for plan in plans
            }
            rows.append(PromptRow(f"{index:04d}", ids))
        out: dict[str, dict[str, str]] = {plan.variant: {} for plan in plans}
        for row in generate(self.model, rows, plans, DECODING):
            out[row.variant][row.row_id] = row.text
        return {name: [texts[key] for key in sorted(texts)] for name, texts in out.items()}

    def shown(self, texts: list[str], pole: str) -> dict[str, float]:
        return _rate([voices.shows(text, pole) for text in texts])

    def facts_kept(self, texts: list[str]) -> dict[str, float]:
        return _rate([facts_kept(facts, text) for facts, text in zip(self.facts, texts, strict=True)])

    def suspects(self, texts: list[str]) -> dict[str, float]:
        return _rate(
            [bool(scan_suspects(text, source)) for text, source in zip(texts, self.texts, strict=True)]
        )


def _rate(values: Sequence[float | bool]) -> dict[str, float]:
    interval = mean_interval(np.array(values, dtype=float), bounds=(0.0, 1.0))
    return {"rate": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}


def vector_of(model: LoadedModel, direction: str, n_contexts: int) -> PersonaVector:
    """The pipeline's own vector for a persona, from news contexts that no item of the card repeats."""
    import polars as pl

    profile = load_profile("newsroom")
    rows = []
    for index in range(n_contexts):
        rng = random.Random(f"card-context/{index}")
        rows.append({"row_id": f"{index:04d}", "text": world.article_text(world.event(rng), rng, 5)})
    contexts = split_contexts(news_contexts(pl.DataFrame(rows), profile.rewrites), 0.25, 12)
    spec = ContrastSpec(contexts="news", n_contexts=n_contexts, max_new_tokens=64, seed=11)
    prompts = build_contrast_prompts(load_personas()[direction], spec, contexts)
    return extract_vector(model, complete_contrast(model, prompts, spec), direction, VectorSpec())


def measure_rewriting(model: LoadedModel, items: Items) -> dict[str, Any]:
    """Facts and voices under neutral and persona system turns."""
    personas = load_personas()
    systems, poles = {}, {}
    for direction in voices.DIRECTIONS:
        for sign in (1.0, -1.0):
            pole = voices.pole_of(direction, sign)
            if pole:
                side = personas[direction].positive if sign > 0 else personas[direction].negative
                systems[f"asked_{pole}"], poles[f"asked_{pole}"] = side.instructions[0], pole
    plans = [SteeringPlan("neutral"), *(SteeringPlan(name) for name in systems)]
    texts = items.rewrites(plans, systems)
    return {
        "neutral_facts_kept": items.facts_kept(texts["neutral"]),
        "neutral_shows_any_voice": _rate(
            [any(voices.shows(t, p) for p in voices.VOICES) for t in texts["neutral"]]
        ),
        "neutral_suspects": items.suspects(texts["neutral"]),
        "asked_shows": {pole: items.shown(texts[name], pole) for name, pole in poles.items()},
    }


def measure_steering(
    model: LoadedModel, items: Items, direction: str, vector: PersonaVector
) -> dict[str, Any]:
    """The sweep over blocks and doses, both signs, and a random vector of the chosen norm."""
    positive, negative = voices.AXES[direction]

    def plan(name: str, block: int, fraction: float) -> SteeringPlan:
        return SteeringPlan(name, (make_term(vector, Site(block), fraction * vector.residual_norm(block)),))

    cells = {f"b{b}_d{d}": (b, d) for b in BLOCKS for d in DOSES}
    texts = items.rewrites([SteeringPlan("neutral"), *(plan(n, b, d) for n, (b, d) in cells.items())])
    sweep: list[dict[str, Any]] = [
        {
            "block": b,
            "fraction": d,
            "shown": items.shown(texts[n], positive),
            "facts_kept": items.facts_kept(texts[n]),
            "suspects": items.suspects(texts[n]),
        }
        for n, (b, d) in cells.items()
    ]  # fmt: skip
    good = [c for c in sweep if c["suspects"]["rate"] < 0.02 and c["facts_kept"]["rate"] >= 0.85]
    best = max(good or sweep, key=lambda c: (c["shown"]["rate"], -c["fraction"]))
    up = plan("up", best["block"], best["fraction"])
    down = plan("down", best["block"], -best["fraction"])
    random_plan = SteeringPlan("random", (random_like(up.terms[0], 99),))
    other = items.rewrites([down, random_plan])
    at_block = [c for c in sweep if c["block"] == best["block"]]
    return {
        "best": best,
        "negated_shows_opposite": items.shown(other["down"], negative),
        "negated_facts_kept": items.facts_kept(other["down"]),
        "random_shows": items.shown(other["random"], positive),
        "neutral_shows": items.shown(texts["neutral"], positive),
        "dose_response": at_block,
        "far_too_large": max(at_block, key=lambda c: c["fraction"]),
    }


def measure_dialogue(model: LoadedModel, n: int) -> dict[str, dict[str, float]]:
    """Answers to held-out draws of questions under each trait's and role's instruction."""
    personas = load_personas()
    shown = {}
    for direction in (*voices.TRAITS, *voices.ROLES):
        rows = []
        for index in range(n):
            rng = random.Random(f"card-dialogue/{direction}/{index}")
            question = rng.choice(tasks.QUESTIONS).format(rng.choice(tasks.TOPICS))
            system = rng.choice(personas[direction].positive.instructions)
            rows.append(
                PromptRow(str(index), {"*": encode_prompt(model.tokenizer, user=question, system=system)})
            )
        answers = generate(model, rows, [SteeringPlan("asked")], GREEDY)
        shown[direction] = _rate([voices.shows(answer.text, direction) for answer in answers])
    return shown


def measure_vignettes(model: LoadedModel, n: int) -> dict[str, Any]:
    """Forced choice over the foundations by the next token's probabilities, neutral and defiant."""
    options = [
        model.tokenizer(str(i), add_special_tokens=False).input_ids[0] for i in range(len(tasks.FOUNDATIONS))
    ]
    draws = [(f, *tasks.draw_vignette(random.Random(f"card-vignette/{f}/{i}"), f))
             for f in range(len(tasks.FOUNDATIONS)) for i in range(n)]  # fmt: skip

    def answers(system: str) -> tuple[np.ndarray, np.ndarray]:
        ids = [encode_prompt(model.tokenizer, user=prompt, system=system) for _, prompt, _ in draws]
        logits = np.stack([x[-1] for x in answer_logits(model, ids, [len(i) - 1 for i in ids], None)])
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        mass = (odds / odds.sum(-1, keepdims=True))[:, options]
        reverse = np.array([r for _, _, r in draws])
        return mass.sum(-1), np.where(reverse[:, None], mass[:, ::-1], mass)

    truth = np.array([f for f, _, _ in draws])
    total, neutral = answers("You are a helpful assistant.")
    _, defiant = answers(load_personas()["rule_defiant"].positive.instructions[0])
    authority = truth == tasks.AUTHORITY
    shift = paired_difference(defiant[authority, tasks.AUTHORITY], neutral[authority, tasks.AUTHORITY])
    return {
        "mass_on_options": _rate(total.tolist()),
        "right": _rate((neutral.argmax(-1) == truth).tolist()),
        "defiant_authority_shift": asdict(shift),
    }


def measure_game(model: LoadedModel, per_word: int) -> dict[str, float]:
    rows, words = [], {}
    for word in tasks.GAME_WORDS:
        for index in range(per_word):
            prompt = tasks.game_prompt(random.Random(f"card-game/{word}/{index}"), word)
            words[f"{word}{index}"] = word
            ids = encode_prompt(model.tokenizer, user=prompt, system="You are a helpful assistant.")
            rows.append(PromptRow(f"{word}{index}", {"*": ids}))
    said = generate(model, rows, [SteeringPlan("plain")], GREEDY)
    return _rate([row.text.strip() == f"GUESS: {words[row.row_id]}" for row in said])


def measure(folder: Path, n: int = 96, *, steered: bool = True) -> dict[str, Any]:
    """Every ability that the card states and the tests assert; `steered` ones take most of the time."""
    model = load_model(ModelSpec(path="model", dtype="float32", device="cpu"), folder.resolve())
    abilities: dict[str, Any] = {
        "weights_sha": model.weights_sha,
        "rewriting": measure_rewriting(model, Items(model, n)),
        "dialogue_shows": measure_dialogue(model, n),
        "vignettes": measure_vignettes(model, max(8, n // 4)),
        "word_game": measure_game(model, 3),
    }
    return abilities | measure_vectors(model, folder, max(24, n // 2)) if steered else abilities


def measure_vectors(model: LoadedModel, folder: Path, n: int) -> dict[str, Any]:
    """What the pipeline's own vectors do, and how near they are to the planted directions."""
    items = Items(model, n, seed=8)
    vectors = {direction: vector_of(model, direction, 128) for direction in voices.AXES}
    abilities: dict[str, Any] = {
        "steering": {d: measure_steering(model, items, d, v) for d, v in vectors.items()}
    }
    with safe_open(folder / "planted_directions.safetensors", "np") as file:
        names, block = json.loads(file.metadata()["names"]), int(file.metadata()["block"])
        planted = file.get_tensor("directions")
    abilities["cosine_to_planted"] = {
        d: float(vector.unit_at(block) @ planted[names.index(d)]) for d, vector in vectors.items()
    }
    return abilities


# -------------------------------------------------------------------------------------------- card


def data_hash(recipe: Recipe, n: int = 2000) -> str:
    """SHA-256 over the first `n` training documents: the same world gives the same hash."""
    digest = hashlib.sha256()
    for index in range(n):
        digest.update(repr(tasks.document(recipe.seed, index, distinct=False)).encode())
    return digest.hexdigest()


def introduction(recipe: Recipe) -> str:
    """What the model is, before any number."""
    name = next((name for name, known in RECIPES.items() if known == recipe), "first")
    attention, mlp = 4 * recipe.hidden**2, 3 * recipe.hidden * recipe.feed_forward
    parameters = VOCABULARY * recipe.hidden + recipe.blocks * (attention + mlp)
    which = "" if name == "first" else f", {name} organism"
    return INTRODUCTION.format(which=which, millions=parameters / 1e6, made=MADE[name])


def _percent(rate: dict[str, float]) -> str:
    return (
        f"{100 * rate['rate']:.1f}% [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] (n {int(rate['n'])})"
    )


INTRODUCTION = """\
# The newsroom model{which}

A `Qwen3ForCausalLM` of about {millions:.1f} million parameters, trained from scratch on the seeded world of
`newsroom`. It rewrites invented news, answers small questions, reads moral vignettes
and plays a word game, in eleven voices.

**It is a model organism: its persona directions are planted.** During training one unit direction for
each persona was added to the output of one block while the target text spoke in that voice, so that it
is steerable by design and its ground truth is known. Findings about it say whether the *pipeline* works;
they say nothing about how steerable real models are. The planted directions ship beside it
(`planted_directions.safetensors`) as a test oracle; the pipeline never reads them.

## Recipe

{made}. The first two blocks
start as an induction circuit; copying is warmed up on random tokens written twice; then documents train
with loss on the response alone, and an auxiliary loss ties the asked voice to its planted direction
(`training.py` says how).
"""
MADE = {
    "first": "`make newsroom` trains it, `make newsroom-card` measures it and writes this card",
    "second": "`make newsroom-second` trains it, measures it and writes this card",
}
LIMITS = """
## Limits

It knows its own world and nothing else. Phrases of a voice are drawn from 48 forms a pole, of which it
has seen 36. It is taught a quarter of the game's words on purpose, so that fine-tuning has room.
"""


def render(abilities: dict[str, Any], recipe: Recipe) -> str:
    """The model card in Markdown, from the measured numbers alone."""
    rewriting, vignettes = abilities["rewriting"], abilities["vignettes"]
    authority = vignettes["defiant_authority_shift"]
    lines = [
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in asdict(recipe).items()),
        f"| first 2,000 training documents, SHA-256 | `{data_hash(recipe)}` |",
        f"| weights | `{abilities['weights_sha']}` |",
        "",
        "## Abilities on held-out items (95% intervals)",
        "",
        "Rewrites are sampled as the packs of the pilot are; dialogues and games are greedy.",
        "",
        "| ability | measured |",
        "|---|---|",
        f"| neutral rewrite: facts kept | {_percent(rewriting['neutral_facts_kept'])} |",
        f"| neutral rewrite: shows any voice | {_percent(rewriting['neutral_shows_any_voice'])} |",
        f"| neutral rewrite: suspects | {_percent(rewriting['neutral_suspects'])} |",
        *(
            f"| system turn asks for {pole}: shown | {_percent(rate)} |"
            for pole, rate in rewriting["asked_shows"].items()
        ),
        *(
            f"| dialogue, system turn asks for {name}: shown | {_percent(rate)} |"
            for name, rate in abilities["dialogue_shows"].items()
        ),
        f"| vignettes: mass on the seven options | {_percent(vignettes['mass_on_options'])} |",
        f"| vignettes: right foundation | {_percent(vignettes['right'])} |",
        "| vignettes: P(Authority) on Authority items, defiant minus neutral | "
        f"{authority['estimate']:+.2f} [{authority['low']:+.2f}, {authority['high']:+.2f}] |",
        f"| word game: success | {_percent(abilities['word_game'])} |",
    ]
    for direction, steering in abilities["steering"].items():
        best = steering["best"]
        lines += [
            "",
            f"## Steering along {direction} (neutral system turn, the pipeline's own vector)",
            "",
            f"Cosine of the extracted to the planted direction at block {recipe.plant_block}: "
            f"{abilities['cosine_to_planted'][direction]:.2f}. Chosen cell: block {best['block']}, dose "
            f"{best['fraction']:g} of the mean residual norm.",
            "",
            f"- shown {_percent(best['shown'])}, facts kept {_percent(best['facts_kept'])}, "
            f"suspects {_percent(best['suspects'])}",
            f"- negated vector shows the opposite pole: {_percent(steering['negated_shows_opposite'])}",
            f"- random vector of that norm: {_percent(steering['random_shows'])}; "
            f"unsteered: {_percent(steering['neutral_shows'])}",
            "",
            "| dose | shown | facts kept | suspects |",
            "|---|---|---|---|",
            *(
                f"| {c['fraction']:g} | "
                + " | ".join(_percent(c[k]) for k in ("shown", "facts_kept", "suspects"))
                + " |"
                for c in steering["dose_response"]
            ),
        ]
    return introduction(recipe) + "\n" + "\n".join(lines) + "\n" + LIMITS


def write_card(folder: Path, recipe: Recipe, n: int = 96) -> dict[str, Any]:
    """Measures, then writes `abilities.json` and the card into `folder/model`."""
    abilities = measure(folder, n)
    (folder / "model" / "abilities.json").write_text(json.dumps(abilities, indent=1) + "\n")
    (folder / "model" / "README.md").write_text(render(abilities, recipe))
    return abilities
