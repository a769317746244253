"""The newsroom's own byte-level BPE with a ChatML template, trained on documents of the world."""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from newsroom import tasks, world

VOCABULARY = 2560
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# words with their leading space, numbers of up to three digits, punctuation, runs of white space
SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _texts(seed: int, n: int) -> Iterator[str]:
    for i in range(n):
        document = tasks.document(seed, i, split="tokenizer", distinct=False)
        yield f"system\n{document.system or ''}\nuser\n{document.user}\nassistant\n{document.response}\n"
    for i in range(n // 8):
        row, _ = world.news_row(seed, -1 - i)
        yield str(row["text"])


def train_tokenizer(seed: int, n_documents: int = 6000) -> PreTrainedTokenizerFast:
    """A tokenizer of `VOCABULARY` entries; deterministic in the seed."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(seed, n_documents), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
