"""Contrast sets of prefilled texts: the same words, cut at several places, under the instructions of both poles.

In: a persona and a model. Out: rows of `CONTRAST_SCHEMA` with source `prefill`, to be read at their last token, where
the model is about to go on. The texts are neutral and open; what differs is the system turn alone. The way of the
package repeng.
"""

import hashlib
import math

import polars as pl

from steer_pipeline.catalogue.specs import ContrastSpec, Persona, VectorSpec
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.personas.contexts import Context, split_contexts
from steer_pipeline.lab.personas.contrast import build_contrast_prompts
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA, PREFILL

PROMPTS = (
    "What is on your mind?",
    "Tell me about your day.",
    "What have you heard lately?",
    "What should we talk about?",
)
TEXTS = (
    "I went through it again this morning, page by page, and what I noticed first was that the people who",
    "The bus was late today, so I stood at the corner for a while and watched the shop across the road, where",
    "My neighbour came over with a letter yesterday. She asked me to read it, and when I had read it I",
    "There is a meeting at the town hall on Thursday, and the one thing that everybody wants to know is",
    "When I opened the window I heard voices from the yard, and it took me a moment to understand that they",
    "We have a new man at the office. He says little, he eats alone, and at the end of the week he",
    "The paper has a long piece about the harbour today. If you ask me, what it comes down to is",
    "I found an old photograph in the drawer. There are five people in it, and the one on the left is",
    "They changed the lock on the front door last week. The reason that they gave us was that",
    "My sister called from the station at noon. She had met somebody on the train who told her that",
    "The weather turned before we had reached the hill, and all that we could do then was to",
    "The doctor looked at the results for a long time, put down her glasses and said that I",
    "On the way home I thought about what the teacher had said, and the longer I thought about it, the more",
    "There was a parcel in front of my door this evening. It has no name on it, and inside there is",
    "I have worked in this building for nine years, and if there is one thing that I have learnt here, it is",
    "The radio was on in the kitchen, and just as I sat down they began to talk about",
    "The mayor gave a speech in the square on Sunday. People listened, and afterwards they",
    "Somebody has planted a tree on the corner of our street. I walk past it every day and think that",
    "My phone rang three times last night. When I picked it up at last, the voice on the line",
    "We are to get a new computer system in spring. What it will mean for the likes of us is",
    "The children came back from their trip with a story about a house by the lake, in which",
    "I was asked to look after the keys while the others are away, and so on Monday I",
    "The bank has sent me a new card and two pages of print. As far as I can see, it all means",
    "A stranger sat down at our table in the cafe, ordered a coffee and, after a while, began to",
)


def prefill_rows(
    model: LoadedModel,
    persona: Persona,
    contrast: ContrastSpec,
    vector: VectorSpec,
    chat_template: bool = True,
) -> pl.DataFrame:
    """Rows of `CONTRAST_SCHEMA`: every text of `TEXTS`, cut after `contrast.prefill_cuts` numbers of tokens.

    Texts are split whole; the i-th instruction of each pole stands over all cuts of a text.
    """
    texts = {_sha(text): text for text in TEXTS}
    asked = [Context(one, PREFILL, PROMPTS[number % len(PROMPTS)]) for number, one in enumerate(texts)]
    split = split_contexts(asked, vector.held_out_fraction, vector.seed)
    every = contrast.model_copy(update={"n_contexts": len(texts)})
    rows = []
    for row in build_contrast_prompts(persona, every, split).iter_rows(named=True):
        user = row["user"] if chat_template else f"{row['user']}\n"
        prompt_ids = encode_prompt(
            model.tokenizer, user=user, system=row["system"], chat_template=chat_template
        )
        text_id = row["context_id"]
        ids = encode_completion(model.tokenizer, texts[text_id], end_of_turn=False)
        for cut in range(1, contrast.prefill_cuts + 1):
            shown = ids[: math.ceil(len(ids) * cut / contrast.prefill_cuts)]
            rows.append(
                row
                | {
                    "context_id": _sha(f"{text_id}\n{len(shown)}"),
                    "user": user,
                    "completion": model.tokenizer.decode(shown),
                    "n_tokens": len(shown),
                    "finish_reason": "given",
                    "prompt_ids": prompt_ids,
                    "completion_ids": shown,
                    "source": PREFILL,
                    "pair_id": text_id,
                }
            )
    return pl.DataFrame(rows, schema=CONTRAST_SCHEMA)


def _sha(text: str) -> str:
    return hashlib.sha256(f"{PREFILL}\n{text}".encode()).hexdigest()[:16]
