"""The reference of reward.py: the frozen model that the policy starts from and is compared with.

reference = Reference(settings, device)          # settings: reward.py's
completions = reference.generate(model, prompts, seeds)
rewards = reference.reward_function(texts)
reference.metrics                       # {"repetition": 0.14, "words": 120, ...}
"""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from configs import UserError
from nanostories.dataset.packing import pad_batch
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import generate, read_prompts
from nanostories.rl import policy_gradient
from nanostories.rl.monitor import story_metrics
from nanostories.rl.reward_function import RewardFunction, SentenceEmbedder, TokenEmbedder
from nanostories.storage import write_json
from nanostories.training import checkpoint
from nanostories.training.device import select_attention

BASELINE_SIZE = 256  # completions of the reference that the baseline is measured on


def read_settings(out_dir):
    """The settings of the run of reward.py in out_dir, a dict; UserError if it is no such run."""
    settings = checkpoint.read_config(out_dir)["train"]
    if "max_similarity" not in settings:
        raise UserError(f"'{out_dir}' is not a run of reward.py, or one of an older version")
    return settings


class Reference:
    """The frozen model, its prompts, the reward, and the baseline: metrics of its completions."""

    def __init__(self, settings, device):
        self.settings, self.device = settings, device
        loaded = checkpoint.load_model(settings.init_from, "latest", device, settings.revision)
        # <|endoftext|> before every prompt, as the run that starts from it will have.
        self.loaded = replace(loaded, bos_ids=[loaded.tokenizer.eot])
        self.model = self.loaded.model.requires_grad_(False)
        select_attention(self.model, settings.attn, torch.float32)
        texts = read_prompts(settings.start).values()
        self.prompts = [self.loaded.encode_prompt(text) for text in texts]
        prompts = [self.prompts[i % len(self.prompts)] for i in range(BASELINE_SIZE)]
        seeds = [[settings.seed, 0, i] for i in range(BASELINE_SIZE)]  # a step's have 1, 2, ...
        completions = self.generate(self.model, prompts, seeds)
        texts = self.decode(completions)
        self.metrics = self._story_metrics(prompts, completions, texts)
        if settings.embedder == "model":
            embed = TokenEmbedder(self.loaded, texts)
        else:
            embed = SentenceEmbedder(settings.embedder, device)
        self.reward_function = RewardFunction(
            settings.word, embed, settings.top_sentences, settings.max_similarity,
            settings.min_words, settings.repetition_penalty, self.metrics["repetition"],
        )  # fmt: skip
        self.rewards = self.reward_function(texts)
        # The standard error of the mean reward of a step.
        error = statistics.stdev(self.rewards) / math.sqrt(settings.batch_size)
        self.metrics |= {"reward": statistics.fmean(self.rewards), "reward_error": error, "kl": 0.0}

    @torch.no_grad()
    def _story_metrics(self, prompts, completions, texts):
        """`story_metrics` of the reference's completions."""
        batch = pad_batch(prompts, completions, self.loaded.tokenizer.eot, self.device)
        settings, log_ref = self.settings, []
        parts = (rows.split(settings.micro_batch_size) for rows in (batch.tokens, batch.targets))
        for tokens, targets in zip(*parts, strict=True):
            logs = policy_gradient.log_probs(self.model, tokens, targets, settings.temperature)
            log_ref += policy_gradient.target_log_probs(logs, targets).sum(1).tolist()
        ended, token_counts = [x.ended for x in completions], batch.completion_mask.sum(1).tolist()
        return story_metrics(texts, ended, token_counts, log_ref, settings.word)

    def generate(self, model, prompts, seeds):
        """A model's Completion of each prompt, lists of token ids; one seed for each."""
        settings, batch_size = self.settings, max(64, self.settings.micro_batch_size)
        return generate(
            open_decoder(model, "float32", self.device), prompts, self.loaded.tokenizer.eot, seeds,
            max_new_tokens=settings.max_new_tokens, max_length=self.loaded.max_length,
            temperature=settings.temperature, batch_size=batch_size,
        )  # fmt: skip

    def decode(self, completions):
        """The texts of completions, without their prompts."""
        return [self.loaded.tokenizer.decode(completion.ids) for completion in completions]

    def save(self, out_dir):
        """Write reference.json to the run folder, for eval/reward_frontier.py."""
        facts = {"model": self.loaded.identity(), "prompts": len(self.prompts)}
        write_json(Path(out_dir) / "reference.json", facts | {"rewards": self.rewards})

    def check_same(self, out_dir):
        """Raise UserError unless the run of reward.py in out_dir started from this very model."""
        if checkpoint.read_state(out_dir)["reference"] != self.loaded.identity():
            name = self.settings.init_from
            raise UserError(f"'{name}' is no longer the model that '{out_dir}' started from")
