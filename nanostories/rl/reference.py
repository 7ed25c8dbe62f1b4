"""
The reference of reward.py: the frozen model that a run begins with and is tied to, what it is
asked, how its stories are rated, and what its own are like.

    reference = Reference(settings, device)      # reward.py's Settings
    stories = reference.tell(model, prompts, seeds)
    rewards = reference.topic(texts)
    reference.base                               # {"repetition": 0.14, "words": 120, ...}
"""

import math
from dataclasses import replace

import torch

from configs import UserError
from nanostories.dataset import packing
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import generate, read_prompts
from nanostories.rl import policy_gradient
from nanostories.rl.monitor import story_metrics
from nanostories.rl.reward_function import RewardFunction, SentenceEmbedder, TokenEmbedder
from nanostories.text.metrics import repeated_ngrams
from nanostories.training import checkpoint
from nanostories.training.device import select_attention

BASE = 256  # stories of the reference that all others are compared with


def embedder_of(settings, found, stories, device):
    """What embeds: see reward_function.py. found: the reference, a Trained; stories: its own."""
    if settings.embedder == "model":
        return TokenEmbedder(found, stories)
    return SentenceEmbedder(settings.embedder, device)


def topic_of(settings, embed, stories):
    """The reward that the settings describe, with what `embedder_of` made; both of stories."""
    shape = {"best": settings.best, "enough": settings.enough, "least": settings.least_words}
    tops, bottoms = zip(*map(repeated_ngrams, stories), strict=True)
    shape |= {"cost": settings.repeat_cost, "usual": sum(tops) / max(1, sum(bottoms))}
    return RewardFunction(settings.word, embed, **shape)


class Reference:
    """
    The frozen model that a run begins with and is tied to, its prompts, the reward, and the
    measures of its own stories; several runs share one.
    """

    def __init__(self, settings, device):
        self.settings, self.device = settings, device
        found = checkpoint.load_model(settings.init_from, "latest", device, settings.revision)
        # Before every prompt <|endoftext|>, as the run that comes of it will be asked.
        self.found = replace(found, bos_ids=[found.tokenizer.eot])
        self.model = self.found.model.requires_grad_(False)
        select_attention(self.model, settings.attn, torch.float32)
        self.prompts = [self.found.encode_prompt(text) for text in read_prompts(settings.start)]
        asked = [self.prompts[i % len(self.prompts)] for i in range(BASE)]
        told = self.tell(self.model, asked, [[settings.seed, 0, i] for i in range(BASE)])
        self.texts = [self.found.tokenizer.decode(story.ids) for story in told]
        embed = embedder_of(settings, self.found, self.texts, device)
        self.topic = topic_of(settings, embed, self.texts)
        self.rewards = self.topic(self.texts)
        self.base = self.measured(asked, told)

    def check_same(self, out_dir):
        """Raise UserError unless the run of reward.py in out_dir began with this very model."""
        state = checkpoint.read_state(out_dir)
        if state["reference"] != self.found.identity():
            raise UserError(
                f"'{self.settings.init_from}' is not the model any more that '{out_dir}' began "
                "with: the same reference is needed"
            )

    def tell(self, model, prompts, seeds):
        """A Story of a model to each of the prompts, lists of ids."""
        how = {"max_new_tokens": self.settings.max_new_tokens, "max_length": self.found.max_length}
        how |= {"temperature": self.settings.temperature, "batch_size": max(64, self.settings.rows)}
        decoder = open_decoder(model, "float32", self.device)
        return generate(decoder, prompts, self.found.tokenizer.eot, seeds, **how)

    def measured(self, asked, told):
        """Measures of the reference's stories, told to the prompts asked."""
        eot, size, log_ref = self.found.tokenizer.eot, self.settings.rows, []
        rows = packing.pad_batch(asked, told, eot, self.device)
        for i in range(0, len(told), size):
            some = rows.tokens[i : i + size], rows.targets[i : i + size]
            with torch.no_grad():
                logs = policy_gradient.log_probs(self.model, some[0], self.settings.temperature)
            log_ref += policy_gradient.of_told(logs, some[1]).sum(1).tolist()
        ends, counts = [story.ended for story in told], rows.completion_mask.sum(1).tolist()
        found = story_metrics(self.texts, ends, counts, log_ref, self.settings.word)
        mean = sum(self.rewards) / len(self.rewards)
        spread = sum((reward - mean) ** 2 for reward in self.rewards) / (len(self.rewards) - 1)
        error = math.sqrt(spread / self.settings.stories)  # of a step's mean
        return found | {"reward": mean, "reward_error": error, "kl": 0.0}
