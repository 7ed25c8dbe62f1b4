"""
TinyStories-Reward: teach a trained model, by reward alone, to tell stories about a word.

    python reward.py configs/reward_cat.py --init_from=out/ts_33m --word=cat
    python reward.py configs/reward_cat.py --kl_factor=0      # without a tie to the reference
    python reward.py configs/reward_cat.py --kl_factor=0,0.02,0.05,0.1    # a run each, and a plot
    python reward.py --resume --out_dir=out/reward_cat
    torchrun --standalone --nproc_per_node=8 reward.py configs/reward_cat.py

A step tells `stories` of them from the prompt, rates each by how close it is to the word
(reward_function.py), and makes the better ones likelier by a policy gradient (policy_gradient.py
has the methods and their formulas), while kl_factor ties the model to what it began as, the
reference. Rated is what was told, not the prompt. What else changes is watched, plotted and alarmed
on (monitor.py).

The run folder is one as train.py makes it, sample.py and eval take it, with watch.png in the place
of loss.png. Ctrl-C or SIGTERM saves after the step under way; --resume goes on as if nothing had
happened.
"""

import math
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint as recompute

from configs import UserError, load, run, show
from eval import reward_sweep
from nanostories.dataset import packing
from nanostories.rl import policy_gradient
from nanostories.rl.monitor import Monitor, story_metrics
from nanostories.rl.reference import Reference
from nanostories.text.words import split_words
from nanostories.training import checkpoint
from nanostories.training.device import environment, pick_device, select_attention
from nanostories.training.distributed import (
    StopSignal,
    all_gather,
    all_reduce_max,
    barrier,
    print0,
    process_group,
    rank,
    world_size,
)
from nanostories.training.logger import RunLogger
from nanostories.training.optim import make_optimizers
from nanostories.training.run_config import check_free, resumed
from nanostories.training.schedule import SCHEDULES, Schedule

LEAST_CHANCE = 1e-5  # temperature: below, stories are told greedily


@dataclass(frozen=True)
class Settings:
    # what to teach whom
    word: str = "cat"  # what the stories are to be about, spelt as within a sentence
    init_from: str = ""  # the model to begin with: a run folder, gpt2, or a model of the hub
    revision: str = ""  # which commit, tag or branch of a model of the hub
    start: str = "Once upon a time there was"  # the prompt; FILE:prompts.txt: one in each line
    embedder: str = "model"  # what is close: the reference's embeddings, or a sentence-transformer
    best: int = 0  # sentences of a story that count, the closest ones; 1: the best, 0: all
    enough: float = 1.0  # the highest cosine of a sentence that counts
    least_words: int = 60  # a story of fewer words loses reward; 0: none does
    repeat_cost: float = 0.0  # reward lost for the share of a story's 3-grams that is repeated
    # how
    method: str = "rloo"  # naive, reinforce, rloo or grpo
    kl_factor: float | str = 0.02  # reward that a nat of KL costs; several, with commas: a sweep
    stories: int = 32  # told in a step, by all ranks together
    group: int = 0  # of them from one prompt, which are compared; 0: all
    max_new_tokens: int = 300  # tokens of a story at the most
    temperature: float = 1.0  # of the model that is taught, and of the reference
    # the run
    out_dir: str = ""  # run folder; default out/<name of the config file>, or out/reward_<word>
    dataset: str = ""  # data folder that evaluations of the run take; default: the reference's
    resume: bool = False  # continue the run in out_dir
    max_iters: int = 200  # steps
    max_minutes: float = 0.0  # instead, if max_iters is 0: train this long
    eval_interval: int = 25  # steps between checkpoints, samples and plots
    stop_on_alarm: bool = False  # end the run with the first alarm
    seed: int = 1337  # decides every story
    # the optimizer, as of train.py
    optimizer: str = "adamw"  # adamw, or muon: muon for the blocks' matrices, adamw for the rest
    learning_rate: float = 3e-4  # the highest, after the warm-up
    min_lr: float = 0.0  # where the schedule ends
    schedule: str = "constant"  # cosine, linear or constant
    warmup_iters: int = 5  # steps from 0 up to learning_rate
    lr_decay_iters: int = 0  # steps until min_lr; default: the whole run
    weight_decay: float = 0.0  # of matrices; biases, gains and embeddings have none
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.95  # AdamW's average of their squares
    grad_clip: float = 1.0  # longest gradient; 0: no clipping
    # the machine
    rows: int = 32  # stories in one pass
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is
    attn: str = "auto"  # attention: auto, triton, sdpa or math


# ----------------------------------------------------------------------------------------------
# what is asked


def complete(settings, origin):
    """The settings with what was left open filled in; with --resume those of the run."""
    files = [name for name in origin.values() if name.endswith(".py")]
    name = Path(files[-1]).stem if files else f"reward_{settings.word.replace(' ', '_')}"
    settings = replace(settings, out_dir=settings.out_dir or f"out/{name}")
    if settings.resume:
        if "kl_factor" not in checkpoint.read_config(settings.out_dir)["train"]:
            raise UserError(f"'{settings.out_dir}' is no run of reward.py: train.py resumes it")
        return resumed(settings, origin, settings.out_dir)
    if not settings.init_from:
        raise UserError("name the model to begin with: --init_from=out/<run>")
    dataset = settings.dataset
    if not dataset and checkpoint.is_run_folder(settings.init_from):
        dataset = checkpoint.data_folder(settings.init_from)
    return replace(settings, dataset=dataset, group=settings.group or settings.stories)


def check(settings):
    """Raise UserError for settings that cannot be."""
    for name in ("stories", "group", "max_new_tokens", "eval_interval", "rows"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1")
    for name in ("max_iters", "max_minutes", "best", "enough", "least_words", "repeat_cost",
                 "learning_rate",
                 "min_lr", "seed",
                 "grad_clip", "weight_decay", "warmup_iters", "lr_decay_iters"):  # fmt: skip
        if not 0 <= getattr(settings, name) < math.inf:
            raise UserError(f"{name} must be a number, and not negative")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 0 and below 1")
    for name, choices in (("method", policy_gradient.METHODS), ("schedule", SCHEDULES),
                          ("optimizer", ("adamw", "muon"))):  # fmt: skip
        if getattr(settings, name) not in choices:
            wrong = getattr(settings, name)
            raise UserError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}: '{wrong}'")
    if not LEAST_CHANCE <= settings.temperature < math.inf:
        raise UserError("temperature must be above 0: a model without chance cannot be taught")
    if not split_words(settings.word):
        raise UserError("name the word that the stories are to be about: --word=cat")
    if not settings.embedder:
        raise UserError("embedder is model, or a model of sentence-transformers")
    if not settings.max_iters and not settings.max_minutes:
        raise UserError("say how long: max_iters or max_minutes")
    if settings.stories % settings.group or settings.stories % world_size():
        raise UserError(
            f"stories ({settings.stories}) must be a multiple of group ({settings.group}) and of "
            f"the ranks ({world_size()})"
        )
    if settings.group < 2 and settings.method != "naive":
        raise UserError(f"method {settings.method} compares the stories of a group: 2 at least")


def factors(settings):
    """The kl_factors asked for, a list of float; UserError where one is none."""
    try:
        found = [float(text) for text in str(settings.kl_factor).split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= factor < math.inf for factor in found):
        raise UserError(f"kl_factor takes numbers from 0 on, not '{settings.kl_factor}'")
    return found


# ----------------------------------------------------------------------------------------------
# a run


class Run:
    """One run: its model, its optimizers and its folder."""

    def __init__(self, settings, reference):
        """settings: complete and checked, with one kl_factor."""
        self.reference, self.device = reference, reference.device
        found = reference.found
        self.state, moments = self.read(settings)
        base = settings.out_dir if settings.resume else settings.init_from
        self.model = checkpoint.load_model(base, "latest", self.device, settings.revision).model
        select_attention(self.model, settings.attn, torch.float32)
        self.optimizers = make_optimizers(self.model, settings)
        checkpoint.load_optimizer_state(self.model, self.optimizers, moments)
        self.schedule = Schedule(settings, settings.max_iters, self.state)
        self.settings = settings = self.schedule.settings
        self.state |= {"model": asdict(self.model.config), "longest": found.max_length}
        facts = environment(self.device) | {"reference": found.identity()}
        if rank() == 0:
            checkpoint.create_run_folder(
                settings.out_dir, self.model.config, settings, found.tokenizer, facts
            )
            self.log = RunLogger(settings.out_dir, self.state)
            self.saver = checkpoint.CheckpointSaver(settings.out_dir)
            self.watch = Monitor(settings, reference.base, self.log.lines)

    def read(self, settings):
        """(state, optimizer tensors), a new run's or those of its newest checkpoint."""
        found = self.reference.found
        if rank() == 0:
            checkpoint.recover(settings.out_dir)
        barrier()
        if not settings.resume:
            data = checkpoint.read_state(found.out_dir)["data"] if found.is_run() else {}
            return {"step": 0, "seconds": 0.0, "tokens": 0, "evaluated": 0, "best": None,
                    "best_step": 0, "kept": [], "data": data, "end": "",
                    "reference": found.identity()}, {}  # fmt: skip
        self.reference.check_same(settings.out_dir)
        state = checkpoint.read_state(settings.out_dir)
        return state, checkpoint.read_optimizer_state(settings.out_dir)

    def run(self):
        """Train to the end, or until asked to stop; state["end"] says which: "" if asked to."""
        settings, state, schedule, stop = self.settings, self.state, self.schedule, False
        state["end"] = ""
        self.model.eval()  # no dropout: the model that tells is the one that is taught
        schedule.start()
        with StopSignal() as interrupt:
            while schedule.progress() < 1 and not stop:
                try:
                    line = self.step(schedule.learning_rate())
                except UserError:  # no weight has changed since: what was learned so far is kept
                    if state["step"] not in [0, *checkpoint.steps_of(settings.out_dir)]:
                        self.save(False)
                    if rank() == 0:
                        self.saver.wait()
                    raise
                sounding = self.watch.add(line) if rank() == 0 else []
                late = bool(sounding) and settings.stop_on_alarm
                schedule.spent, asked, late = all_reduce_max(
                    schedule.now(), interrupt.received, late
                )
                self.report(line, sounding)
                if schedule.progress() >= 1 or late:
                    state["end"] = "alarm" if late else "done"
                stop = bool(asked or late)
                regular = state["step"] % settings.eval_interval == 0 or bool(state["end"])
                if regular or stop:
                    self.save(regular)
            if rank() == 0:
                self.saver.wait()
        end = "stopped after" if schedule.progress() < 1 else "done with"
        print0(f"{end} step {state['step']}; to go on: --resume --out_dir={settings.out_dir}")

    def step(self, lr):
        """One step; what was measured, {name: float}."""
        settings, reference, state = self.settings, self.reference, self.state
        number, n = state["step"], settings.stories
        prompts = [reference.prompts[(number * (n // settings.group) + i // settings.group)
                                     % len(reference.prompts)] for i in range(n)]  # fmt: skip
        mine = slice(rank() * n // world_size(), (rank() + 1) * n // world_size())
        prompts, seeds = prompts[mine], [[settings.seed, number + 1, i] for i in range(n)][mine]
        told = reference.tell(self.model, prompts, seeds)
        self.texts = [reference.found.tokenizer.decode(story.ids) for story in told]
        rewards = reference.topic(self.texts)
        rows = packing.pad_batch(prompts, told, reference.found.tokenizer.eot, self.device)
        log_pi, log_ref, kl = self.compared(rows)  # (n, T) each
        nats = (log_pi - log_ref).sum(1).detach()
        # A story is compared with those that other ranks told, too.
        both = (torch.tensor(all_gather(part)) for part in (rewards, nats.tolist()))
        advantage = policy_gradient.advantages(
            settings.method, *both, settings.kl_factor, settings.group
        )
        advantage = advantage[mine].to(self.device)
        losses = policy_gradient.loss(
            settings.method, advantage, log_pi, kl, rows.completion_mask, settings.kl_factor
        )
        (losses.sum() / n).backward()
        norm = self.update(lr)
        state["step"] += 1
        sums = {"kl": kl.sum(1), **policy_gradient.estimates(log_pi, log_ref), "loss": losses}
        sums |= {"tokens": rows.completion_mask.sum(1), "log_ref": log_ref.sum(1)}
        found = {name: x.detach().tolist() for name, x in sums.items()} | {"reward": rewards}
        found |= {"text": self.texts, "ended": [story.ended for story in told]}
        return self.measured(found) | {"lr": lr, "grad_norm": norm}

    def compared(self, rows):
        """`policy.compare` of Rows, in passes of at most `rows` stories."""
        settings, size, found = self.settings, self.settings.rows, []
        for i in range(0, len(rows.tokens), size):
            ask = (self.model, self.reference.model, rows.tokens[i : i + size],
                   rows.targets[i : i + size], settings.temperature,
                   settings.method in policy_gradient.KL_IN_LOSS)  # fmt: skip
            if len(rows.tokens) <= size:
                return policy_gradient.compare(*ask)
            # Of several passes none keeps what its gradient needs: that is computed once more.
            found.append(recompute(policy_gradient.compare, *ask, use_reentrant=False))
        return [torch.cat(part) for part in zip(*found, strict=True)]

    def measured(self, mine):
        """{measure: float} of all ranks' stories. mine: {what: a list}, of this one's stories."""
        every = {name: all_gather(column) for name, column in mine.items()}
        texts, ends, log_ref = (every.pop(name) for name in ("text", "ended", "log_ref"))
        self.state["tokens"] += sum(every["tokens"])
        found = story_metrics(texts, ends, every["tokens"], log_ref, self.settings.word)
        return found | {name: sum(x) / len(x) for name, x in every.items()}

    def update(self, lr):
        """Add the ranks' gradients up and let the optimizers step; the gradient's norm."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if world_size() > 1:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
        clip = self.settings.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip).item()
        if not math.isfinite(norm):
            raise UserError(
                f"step {self.state['step'] + 1}: the gradient is nan or inf; no weight has changed "
                "since the step before. A lower learning_rate may help"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def report(self, line, sounding):
        """A progress line, and in the log."""
        settings, step = self.settings, self.state["step"]
        if rank():
            return
        left = timedelta(seconds=max(0, round(self.schedule.left())))
        print(
            f"step {step:>5} | reward {line['reward']:+.3f} | kl {line['kl']:6.2f} | about "
            f"{settings.word} {line['about']:4.0%} | perplexity {line['perplexity']:6.2f} | "
            f"repeated {line['repetition']:5.1%} | words {line['words']:4.0f} | eta {left}"
            + (f" | ALARM: {', '.join(sounding)}" if sounding else ""),
            flush=True,
        )
        seconds = round(self.schedule.spent, 2)
        self.log.write(step=step, **line, seconds=seconds,
                       **{f"alarm_{name}": 1 for name in sounding})  # fmt: skip

    def save(self, regular):
        """
        A checkpoint and the plot, from rank 0; if regular, at the end of an interval, three stories
        too, and the interval may have been the best one.
        """
        state = self.state
        state |= {"seconds": self.schedule.spent}
        if rank() == 0:
            if regular:
                self.judge()
            self.watch.plot(self.log.lines)
            self.saver.save(self.model, self.optimizers, state)
        barrier()  # then the clock runs on for all of them
        self.schedule.start()

    def judge(self):
        """The end of an interval: was it the best one? And three stories."""
        state, factor = self.state, self.settings.kl_factor
        lines = [line for line in self.log.lines if line["step"] > state["evaluated"]]
        worth = sum(line["reward"] - factor * line["kl"] for line in lines) / len(lines)
        if state["best"] is None or worth > state["best"]:
            state |= {"best": worth, "best_step": state["step"]}
        state["evaluated"] = state["step"]
        self.log.sample(state["step"], "\n\n".join(self.texts[:3]))


# ----------------------------------------------------------------------------------------------
# the command


def start(settings, reference):
    """A run, from its beginning or on from where it stands; how it ended, as Run.run has it."""
    with checkpoint.full_disk_explained(settings.out_dir):
        run_ = Run(settings, reference)
        run_.run()
    return run_.state["end"]


def main():
    settings, origin = load(Settings)
    with process_group():
        settings = complete(settings, origin)
        asked = factors(settings)
        check(settings)
        runs = [replace(settings, kl_factor=asked[0])]
        if len(asked) > 1:
            runs = reward_sweep.members(settings, origin, asked)
        elif not settings.resume:
            check_free(settings.out_dir)
        if rank() == 0:
            show(settings, origin)
        reference = Reference(settings, pick_device(settings.device))
        print0("the reference: " + ", ".join(f"{k} {v:.3g}" for k, v in reference.base.items()))
        if len(asked) > 1:
            reward_sweep.run(settings, runs, reference, start)
        else:
            start(*runs, reference)


if __name__ == "__main__":
    run(main)
