"""What the columns of the rewrite tables hold, in a sentence each: for previews and schemas, free of imports."""

PACK = {
    "row_id": "Hash of the news item's url and text; the same item has it in every variant.",
    "source_index": "Ordinal of the news item in its source.",
    "model": "Model that wrote the rewrite.",
    "domain": "Site of the news item.",
    "date": "Date of the news item, as its source gives it.",
    "url": "Address of the news item.",
    "variant": "Variant of the catalogue.",
    "personas": "What was added to the model: a record a vector, with version, block, alpha and dose fraction.",
    "prompt": "User turn that the model was given: the instruction with the news item.",
    "output": "The rewrite.",
    "seed": "Seed of the profile's sampling.",
    "stream": "Name of the stream of random numbers that the variant draws from.",
    "decoding_hash": "Hash of sampling, prompt, model and back end; equal where rows may be mixed.",
    "n_prompt_tokens": "Tokens of the whole prompt, template included.",
    "n_new_tokens": "Tokens drawn, the end token included.",
    "finish_reason": "`eos`: the model ended by itself; `length`: the token limit cut it.",
    "truncated": "Whether the token limit cut the rewrite.",
    "profile": "Profile that it was made with.",
    "size": "Size that the pack was asked in, `pilot` or `full`.",
    "made_with": "JSON of what all variants that are compared with each other must share.",
    "nll": "Nats a token under the unsteered model, given the neutral prompt; null for an empty text.",
}
BAND = PACK | {
    "variant": "`random_00`, `random_01`, …: one random direction each.",
    "token_ids": "Tokens of the rewrite, without the end token.",
}
KEEP = PACK | {
    "suspects": "Names of the suspect rules that the rewrite trips.",
    "facts_kept": "Share of the lead's facts that it keeps; null where the lead has none.",
    "length_ratio": "Words per word of base's rewrite.",
    "overlap_with_base": "Multiset Jaccard of its words with base's, 1 where equal.",
    "same_as_base": "Whether it equals base's rewrite.",
    "perplexity": "Perplexity under the unsteered model; null where not measured.",
    "trait": "Trait score in the wanted direction; null where not measured.",
    "keep": "Whether no criterion speaks against learning from it.",
    "reasons": "Criteria that speak against it.",
}
SUMMARY = {
    "variant": "Variant of the catalogue.",
    "role": "What it is in the comparison: base, steered, prompted or control.",
    "metric": "What was measured; `trait_<persona>_<scale>` is a signed trait score in [-1, 1].",
    "n": "News items behind the difference.",
    "mean": "Mean over news items.",
    "difference": "Paired mean difference to the reference.",
    "low": "Lower end of the difference's 95% interval.",
    "high": "Upper end of it.",
    "detectable": "Smallest difference that would be found with 80% power, from the spread seen.",
    "p": "Test of the mean of the paired differences.",
    "p_holm": "The same after Holm over all variants and metrics; none of controls.",
}
