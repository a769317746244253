"""Claims about gate 2: each way in which a filter of samples has let junk through, or kept nothing worth learning."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.lab.heal.filtering import (
    JUDGED_SCHEMA,
    REASONS,
    differs_from_base,
    filter_samples,
    require_usable,
    sieve,
)
from steer_pipeline.lab.heal.scores import loop_scores, score_samples, with_losses
from steer_pipeline.lab.models.prompts import encode_completion
from steer_pipeline.lab.quality.leaks import Told
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline_tests.lab.generation.reference import loaded

HEADS = ("bl", "ca", "de", "fo", "gri", "hu", "ju", "lo")
TAILS = ("nd", "rk", "st", "mp", "ng", "tter", "ll", "mble")
WORDS = [head + tail for head in HEADS for tail in TAILS]
SPEC = HealFilterSpec(min_kept=8, max_per_cell=None)
TOKENS = 64


def sound_text(seed):
    return " ".join(np.random.default_rng(seed).permutation(WORDS)[:50])


def sample(name, text=None, *, prompt="p0", dose=1.0, nll=2.0, losses=None, truncated=False, seed=0):
    rng = np.random.default_rng([seed, *name.encode()])
    own = rng.normal(nll, 0.1, TOKENS) if losses is None else losses
    return {
        "sample_id": name,
        "prompt_id": prompt,
        "dose": dose,
        "prompt": "Say something.",
        "output": sound_text([7, *name.encode()]) if text is None else text,
        "truncated": truncated,
        "token_ids": [(7 * i * i) % 1000 for i in range(len(own))],
        "losses": [float(value) for value in own],
    }


def frame(rows):
    kinds = {"dose": pl.Float64(), "losses": pl.List(pl.Float32())}
    return pl.DataFrame(rows, schema_overrides=kinds)


def base(prompts=12, **more):
    """Texts of 1.5 to 2.5 nats a token."""
    nll = np.linspace(1.5, 2.5, prompts)
    return frame([sample(f"base{i}", prompt=f"p{i}", dose=None, nll=nll[i], **more) for i in range(prompts)])


def reasons(rows, spec=SPEC, base_rows=None, **more):
    found = filter_samples(frame(rows), base() if base_rows is None else base_rows, spec, **more).rows
    return dict(found.select("sample_id", "reasons").iter_rows())


# --------------------------------------------------------------------- what was let through once


def test_a_loop_of_four_words_is_out_though_no_run_of_words_makes_up_a_third_of_it():
    """The share of the most frequent 4-gram is .255: below the limit of .3 that kept such texts."""
    text = "one two three four " * 40
    runs = Counter(zip(*(text.split()[i:] for i in range(4)), strict=False))
    assert round(max(runs.values()) / runs.total(), 3) == 0.255
    found = reasons([sample("loop", text), sample("sound")])
    assert {"cycle", "duplicates", "few_words", "compressible", "long_repeat"} <= set(found["loop"])
    assert found["sound"] == []


def test_a_loop_is_too_likely_even_where_no_word_repeats():
    """Perplexity above a limit cannot see it: loops are likely text."""
    losses = [*np.full(TOKENS - 32, 2.0), *np.full(32, 0.05)]
    found = reasons([sample("loop", losses=losses), sample("sound")])
    assert found == {"loop": ["too_likely"], "sound": []}


def test_a_collapse_after_a_good_start_is_out_though_the_mean_is_sound():
    losses = np.array([*np.full(TOKENS - 16, 1.5), *np.full(16, 5.0)])
    assert losses.mean() < 2.5  # an ordinary mean
    found = reasons([sample("late", losses=losses), sample("sound")])
    assert found == {"late": ["unlikely"], "sound": []}


def test_a_loop_that_begins_late_or_comes_back_after_a_window_is_out():
    start = " ".join(WORDS[:60])
    late = f"{start} {'a storm is coming ' * 3}"
    far = [" ".join(WORDS[i : i + 20]) for i in (0, 20, 40)]
    back = ". ".join([*far, *reversed(far), far[1], far[0], far[2]])
    found = reasons([sample("late", late), sample("back", back)])
    assert "cycle" in found["late"]
    assert "duplicates" in found["back"]


def test_a_fluent_text_in_a_style_of_its_own_is_kept():
    """Likelihood is a measure of style, too: what is less likely than base by less than the allowance stays."""
    assert reasons([sample("novel", nll=2.7), sample("babble", nll=3.6)]) == {
        "novel": [],
        "babble": ["unlikely"],
    }


def test_rare_words_are_expected_to_be_unlikely():
    """The same losses are those of sound rare words, and of common words in no order."""

    def rare_first(name, losses, turned=False):
        row = sample(name, losses=losses)
        ids = [3, 900] * (TOKENS // 2)
        return row | {"token_ids": ids[::-1] if turned else ids}

    rng = np.random.default_rng(0)
    plain = [0.5, 4.0] * (TOKENS // 2)
    of_base = frame([rare_first(f"b{i}", np.array(plain) * rng.uniform(0.9, 1.1, TOKENS)) for i in range(20)])
    wordy = rare_first("wordy", [4.0] * TOKENS) | {"token_ids": [900] * TOKENS}
    salad = rare_first("salad", [4.0] * TOKENS) | {"token_ids": [3] * TOKENS}
    assert reasons([wordy, salad], base_rows=of_base) == {"wordy": [], "salad": ["unlikely"]}


def test_a_looping_base_makes_no_loop_fit_to_learn():
    looping = [
        sample(f"b{i}", "round and round it goes and " * 12, dose=None, nll=0.05, prompt=f"p{i}")
        for i in range(20)
    ]
    mixed = pl.concat([base(), frame(looping)])
    found = reasons([sample("loop", "on and on we go " * 12, nll=0.05), sample("sound")], base_rows=mixed)
    assert {"cycle", "too_likely"} <= set(found["loop"])
    assert found["sound"] == []


def test_a_base_of_loops_has_no_limits_to_give():
    loops = frame([sample(f"b{i}", "round and round it goes " * 12, dose=None) for i in range(20)])
    with pytest.raises(Refused, match="of 20 texts of base 0 do not loop"):
        filter_samples(frame([sample("a")]), loops, SPEC)


def test_leaks_refusals_cuts_copies_and_empty_texts_have_their_reasons():
    told = Told(
        ("paranoid",), ("You are a paranoid reporter who suspects a hidden plot behind every event.",)
    )
    copied = base()
    found = reasons(
        [
            sample("leak", f"As a paranoid reporter I must say: {sound_text(1)}"),
            sample("echo", f"{sound_text(2)} Who suspects a hidden plot behind every event?"),
            sample("refusal", "I'm sorry, but I can't help with that."),
            sample("cut", truncated=True),
            sample("copy", copied["output"][3] + "\n", prompt="p3"),
            sample("other_prompt", copied["output"][3], prompt="p4"),
            sample("empty", " ", losses=[]),
            sample("special", f"{sound_text(4)}<|im_end|>"),
        ],
        base_rows=copied,
        told=told,
    )
    assert found == {
        "leak": ["leak"],
        "echo": ["leak"],
        "refusal": ["refusal"],
        "cut": ["truncated"],
        "copy": ["same_as_base"],
        "other_prompt": [],
        "empty": ["unmeasured", "suspect"],
        "special": ["suspect"],
    }
    kept = reasons([sample("cut", truncated=True)], HealFilterSpec(keep_truncated=True))
    assert kept == {"cut": []}


def test_losses_are_those_of_the_ids_that_were_generated(tmp_path):
    """Prompt and completion encoded together have other tokens at their border, and so another likelihood."""
    model = loaded(tmp_path, "llama")
    tokenizer = model.tokenizer
    prompt, answer = "The city coun", "cil of Northport voted on Tuesday"
    prompt_ids, ids = (encode_completion(tokenizer, text, end_of_turn=False) for text in (prompt, answer))
    assert encode_completion(tokenizer, prompt + answer, end_of_turn=False) != [*prompt_ids, *ids]
    rows = pl.DataFrame({"prompt_ids": [[9], prompt_ids, [9]], "token_ids": [ids, ids, []]})
    found = with_losses(rows, model)["losses"].to_list()
    assert [len(losses) for losses in found] == [len(ids), len(ids), 0]

    import torch

    whole = torch.tensor([[*prompt_ids, *ids]])
    with torch.inference_mode():
        logits = model.module(whole).logits[0, len(prompt_ids) - 1 : -1].float()
    wanted = -logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert found[1] == pytest.approx(wanted.tolist(), abs=2e-3)


def test_a_sieve_measures_samples_and_says_which_pass_whatever_the_cap(tmp_path):
    model = loaded(tmp_path, "llama")
    rng = np.random.default_rng(0)
    asked = encode_completion(model.tokenizer, "Say something.", end_of_turn=False)

    def drawn(names, texts):
        rows = [sample(name, text) for name, text in zip(names, texts, strict=True)]
        ids = [encode_completion(model.tokenizer, text, end_of_turn=False) for text in texts]
        return frame(rows).with_columns(
            prompt_ids=pl.lit(asked), token_ids=pl.Series(ids, dtype=pl.List(pl.Int64()))
        )

    texts = [" ".join(rng.permutation(WORDS)[:20]) for _ in range(20)]
    base_rows = drawn([f"b{i}" for i in range(12)], texts[:12]).drop("losses")
    spec = HealFilterSpec(max_per_cell=1, max_spread=4.0)
    rows = drawn([f"s{i}" for i in range(9)], [*texts[12:], "on and on we go " * 9])
    found = sieve(model, base_rows, spec)(rows.drop("losses"))
    assert found[-1] is False
    assert sum(found) >= 6  # of one prompt at one dose, of which the cap would keep one
    judged = filter_samples(with_losses(rows, model), with_losses(base_rows, model), spec)
    assert judged.rows["passes"].to_list() == found
    assert judged.kept.height == 1
    added = {name: kind for name, kind in judged.rows.schema.items() if name in JUDGED_SCHEMA}
    assert added == dict(JUDGED_SCHEMA)


# ------------------------------------------------------------------------------------ what is kept


def many(prompts=40, samples=6, doses=(1.0,), **more):
    return [
        sample(f"s{prompt}-{number}-{dose}", prompt=f"p{prompt}", dose=dose, **more)
        for prompt in range(prompts)
        for number in range(samples)
        for dose in doses
    ]


def test_what_is_kept_covers_the_prompts_whatever_their_order():
    """Not the first 64 in prompt order, which are the first eleven prompts."""
    spec = HealFilterSpec(max_per_cell=2, max_kept=64)
    rows = frame(many())
    found = filter_samples(rows, base(), spec)
    per_prompt = found.kept["prompt_id"].value_counts()
    assert found.kept.height == 64
    assert per_prompt.height == 40
    assert per_prompt["count"].max() == 2
    assert found.histogram["over_cap"] == rows.height - 64
    assert found.rows["passes"].all()
    turned = filter_samples(rows.reverse(), base(), spec)
    assert set(turned.kept["sample_id"]) == set(found.kept["sample_id"])
    other = filter_samples(rows, base(), spec.model_copy(update={"seed": 71}))
    assert set(other.kept["sample_id"]) != set(found.kept["sample_id"])


def test_the_cap_holds_for_each_dose():
    found = filter_samples(frame(many(4, 6, (0.5, 1.0))), base(), HealFilterSpec(max_per_cell=3))
    counts = found.kept.group_by("prompt_id", "dose").len()
    assert counts["len"].to_list() == [3] * 8


def test_rows_keep_their_order_and_every_score():
    rows = frame([*many(3, 2), sample("loop", "on and on we go " * 12, nll=0.1)])
    found = filter_samples(rows, base(), SPEC).rows
    assert found["sample_id"].to_list() == rows["sample_id"].to_list()
    scores = found.select("duplicate_mass", "distinct", "compression", "longest_repeat", "nll", "nll_low")
    assert scores.null_count().sum_horizontal().item() == 0
    assert found["cycle_period"].to_list() == [None] * 6 + [5]


def test_two_kept_texts_stop_the_round_with_the_reasons():
    rows = [sample(f"loop{i}", "on and on we go " * 12) for i in range(9)]
    found = filter_samples(frame([*rows, sample("a"), sample("b", prompt="p1")]), base(), SPEC)
    with pytest.raises(Refused, match=r"2 of 11 kept; dropped: cycle 9, .*at least 8 are needed") as told:
        require_usable(found, base(), SPEC)
    assert "lower the dose" in str(told.value)
    assert set(found.histogram) == set(REASONS)


def test_texts_that_are_as_base_s_stop_the_round():
    near = filter_samples(frame(many(12, 3)), base(), SPEC)
    with pytest.raises(Refused, match="kept against base on 12 prompts: nll .* a coherent no-op"):
        require_usable(near, base(), SPEC)
    other = filter_samples(frame(many(12, 3, nll=2.5)), base(), SPEC)
    assert [verdict.passed for verdict in require_usable(other, base(), SPEC)] == [True, True]


def test_a_trait_counts_before_likelihood_and_only_in_its_direction():
    rows = filter_samples(frame(many(12, 3, nll=2.5)), base(), SPEC).kept
    own = score_samples(base(), SPEC).with_columns(trait=pl.lit(0.1))
    rng = np.random.default_rng(0)
    for shift, passes in ((0.5, True), (-0.5, False), (0.0, False)):
        scored = rows.with_columns(trait=0.1 + shift + pl.Series(rng.normal(0, 0.05, rows.height)))
        verdict = differs_from_base(scored, own, SPEC)
        assert verdict.passed is passes, verdict.message
        assert verdict.numbers["prompts"] == 12
    with pytest.raises(ValueError, match="prompt p11 has no sample of base"):
        differs_from_base(rows, own.filter(pl.col("prompt_id") != "p11"), SPEC)


def test_the_borderline_shows_the_nearest_on_both_sides_of_each_limit():
    rows = [sample(f"s{i}", nll=2.0 + 0.1 * i) for i in range(20)]
    found = filter_samples(frame(rows), base(), SPEC)
    near = found.borderline().filter(pl.col("reason") == "unlikely")
    limit = near["limit"][0]
    assert near["side"].to_list() == ["kept", "kept", "dropped", "dropped"]
    kept, dropped = (near.filter(pl.col("side") == side)["score"].to_list() for side in ("kept", "dropped"))
    scores = found.rows["surprise"].to_list()
    assert kept == sorted((score for score in scores if score <= limit), reverse=True)[:2]
    assert dropped == sorted(score for score in scores if score > limit)[:2]


def test_rows_without_what_is_needed_are_refused_by_name():
    rows = frame([sample("a"), sample("b")])
    with pytest.raises(ValueError, match="samples have no losses"):
        filter_samples(rows.drop("losses"), base(), SPEC)
    with pytest.raises(ValueError, match="no column 'prompt_id'"):
        filter_samples(rows.drop("prompt_id"), base(), SPEC)
    with pytest.raises(ValueError, match="sample b: it has not as many losses as tokens"):
        filter_samples(frame([sample("a"), sample("b") | {"token_ids": [1]}]), base(), SPEC)
    with pytest.raises(ValueError, match="sample_id a stands in more than one row"):
        filter_samples(pl.concat([rows, rows.head(1)]), base(), SPEC)


def test_measures_of_short_and_empty_texts_are_harmless():
    for text in ("", "...", "Yes.", "No, no, no."):
        scores = loop_scores(text, 40)
        assert scores["cycle_rounds"] == scores["duplicate_mass"] == 0.0
        assert scores["distinct"] == scores["compression"] == 1.0
