"""Makes the labelled texts that the filter of samples is judged on: sound, looping, broken, leaking and refusing ones.

`python -m steer_pipeline_tests.labelled` writes `assets_data/filter_texts/texts.jsonl` anew from `SEED`. Sound texts
are written by hand, taken from the catalogue's examples and from the news of this project; loops and babble are made
of them. Two halves: `fit`, on which thresholds are chosen, and `held_out`, on which figures are given. No hand-written
sentence, news item, example or template of one half stands in the other.
"""
