"""TinyStories-Reward: fine-tune a model by reinforcement learning to write stories about a word.

    python reward.py configs/reward_cat.py --init_from=out/ts_33m --word=cat
    python reward.py configs/reward_cat.py --kl_factor=0      # without a KL penalty
    python reward.py --resume --out_dir=out/reward_cat
    torchrun --standalone --nproc_per_node=8 reward.py configs/reward_cat.py
    for k in 0 0.02 0.1; do python reward.py configs/reward_cat.py --kl_factor=$k --out_dir=out/kl_$k; done
    python -m eval.reward_frontier out/kl_0 out/kl_0.02 out/kl_0.1     # reward against KL

In each step the policy, the model that is trained, generates batch_size completions of the prompt.
Each one, without its prompt, gets a reward for how close it is to the word (reward_function.py). A
policy gradient (policy_gradient.py) makes the better ones more likely, less a penalty of kl_factor
for each nat of KL divergence from the reference, the model that the policy started from.
monitor.py tracks KL, repetition, length and more, plots them and raises alarms.

The run folder is like that of train.py, and sample.py and eval take it; monitor.png replaces
loss.png. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save after the current step; --resume continues as if
nothing had happened.
"""  # noqa: E501  one line to copy

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint as recompute

from configs import UserError, check_ranges, load, run, show
from nanostories.dataset.packing import pad_batch
from nanostories.rl import monitor, policy_gradient
from nanostories.rl.reference import Reference, read_settings
from nanostories.text.words import split_words
from nanostories.training import checkpoint, schedule
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
from nanostories.training.logger import RunLogger, services
from nanostories.training.model_settings import pretrained
from nanostories.training.optim import make_optimizers
from nanostories.training.run_config import check_free, only_writer, resumed


@dataclass(frozen=True)
class Settings:
    # the task
    word: str = "cat"  # what the stories are to be about, spelt as within a sentence
    init_from: str = ""  # the model to start from: a run, gpt2, one of the hub; default: pretrained
    revision: str = ""  # commit, tag or branch of a model of the hub
    start: str = "Once upon a time there was"  # the prompt; FILE:prompts.txt: one in each line
    # the reward
    embedder: str = "model"  # model: the reference's embeddings; or one of sentence-transformers
    top_sentences: int = 0  # the closest sentences of a story, whose mean counts; 0: all
    max_similarity: float = 1.0  # a sentence counts for at most this cosine similarity
    min_words: int = 60  # a shorter story loses 1 - words / min_words of reward; 0: no minimum
    repetition_penalty: float = 0.0  # times the fraction of repeated 3-grams above the reference's
    # the policy gradient
    method: str = "rloo"  # naive, reinforce, rloo or grpo
    kl_factor: float = 0.02  # weight of the KL penalty: reward that a nat costs, but for grpo
    batch_size: int = 32  # completions in a step, those of all ranks together
    group_size: int = 0  # completions of one prompt, compared with each other; 0: batch_size
    max_new_tokens: int = 300  # most tokens of a completion
    temperature: float = 1.0  # of sampling, and of policy and reference in the loss
    # the run
    out_dir: str = ""  # run folder; default out/<name of the config file>, or out/reward_<word>
    dataset: str = ""  # data folder for the commands of eval; default: the reference's
    resume: bool = False  # continue the run in out_dir
    max_iters: int = 200  # the run ends after so many steps; 0: no limit
    max_minutes: float = 0.0  # the run also ends after so many minutes; 0: no limit
    save_interval: int = 25  # steps between checkpoints, samples and plots
    stop_on_alarm: bool = False  # end the run at the first alarm
    report_to: str = ""  # log to tensorboard or wandb, too; both with a comma
    seed: int = 1337  # decides every completion
    # the optimizer, as in train.py
    optimizer: str = "adamw"  # adamw, or muon: muon for the blocks' matrices, adamw for the rest
    learning_rate: float = 3e-4  # the highest, after the warm-up
    min_lr: float = 0.0  # where cosine and linear end
    schedule: str = "constant"  # cosine, linear or constant
    warmup_iters: int = 5  # steps of linear warm-up
    lr_decay_iters: int = 0  # steps until min_lr; default: the run, by the clock with max_minutes
    weight_decay: float = 0.0  # of matrices; biases, gains and embeddings have none
    muon_lr_scale: float = 1.0  # muon's learning rate, times learning_rate
    muon_momentum: float = 0.95  # its average of gradients
    embedding_lr_scale: float = 1.0  # the embeddings' learning rate, times learning_rate
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.95  # AdamW's average of their squares
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    # the hardware
    micro_batch_size: int = 32  # completions in one forward pass of the loss
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is
    attn: str = "auto"  # attention: auto, triton, sdpa or math

    # Colder sampling is greedy: all completions of a prompt are the same, and teach nothing.
    temperature_range = 1e-5, 100
    save_interval_range = 1, 10**9
    method_choices = policy_gradient.METHODS


# ---- settings ----------------------------------------------------------------------------------


def complete(settings, origin):
    """The settings with the defaults filled in that depend on others; with --resume the run's.

    origin: of configs.load."""
    config_files = [name for name in origin.values() if name.endswith(".py")]
    name = f"reward_{settings.word.replace(' ', '_')}"
    name = Path(config_files[-1]).stem if config_files else name
    settings = replace(settings, out_dir=settings.out_dir or f"out/{name}")
    if settings.resume:
        read_settings(settings.out_dir)  # refuses a run of train.py
        settings = resumed(settings, origin, settings.out_dir)
    elif not settings.init_from:
        settings = replace(settings, init_from=pretrained())
        print0(f"no init_from: starting from {settings.init_from}, which comes with nanoStories")
    dataset = settings.dataset
    if not dataset and checkpoint.is_run_folder(settings.init_from):
        dataset = checkpoint.read_config(settings.init_from)["train"]["dataset"]
    settings = replace(
        settings,
        dataset=dataset,
        group_size=settings.group_size or settings.batch_size,
        # 0, with max_minutes: the schedule follows the clock.
        lr_decay_iters=settings.lr_decay_iters or (not settings.max_minutes) * settings.max_iters,
    )
    if notice := schedule.rate_at_end(settings, settings.max_iters):
        print0(notice)
    return settings


def check(settings):
    """Raise UserError for settings that cannot work, before anything is loaded or written."""
    check_ranges(settings)
    services(settings.report_to)
    if not split_words(settings.word):
        raise UserError("name the word that the stories are to be about: --word=cat")
    if not settings.embedder:
        raise UserError("embedder must be model, or a model of sentence-transformers")
    if not settings.max_iters and not settings.max_minutes:
        raise UserError("set the length of the run: max_iters or max_minutes")
    if settings.batch_size % settings.group_size or settings.batch_size % world_size():
        raise UserError(
            f"batch_size ({settings.batch_size}) must be a multiple of group_size "
            f"({settings.group_size}) and of the number of ranks ({world_size()})"
        )
    if settings.group_size < 2 and settings.method != "naive":
        raise UserError(f"method {settings.method} compares a group: group_size must be at least 2")
    if not settings.resume:
        check_free(settings.out_dir)


# ---- one step ----------------------------------------------------------------------------------


def train_step(policy, reference, optimizers, settings, step, lr):
    """Step number `step`, from 0: completions, rewards, advantages, loss, update.

    Returns (texts, metrics): the completions of this rank, and {name: float} over those of all
    ranks. Where metrics["grad_norm"] is not finite, no weight has changed."""
    # Rollout: the policy generates this rank's part of the batch, as the reference's prompts and
    # settings say. Groups take the prompts in turn.
    batch_size, group_size = settings.batch_size, settings.group_size
    first = rank() * batch_size // world_size()
    indices = range(first, first + batch_size // world_size())
    groups = [(step * batch_size + i) // group_size for i in indices]
    prompts = [reference.prompts[group % len(reference.prompts)] for group in groups]
    seeds = [[settings.seed, step + 1, i] for i in indices]  # 0 was the baseline's
    completions = reference.generate(policy, prompts, seeds)

    # Reward: of the completions without their prompts.
    texts = reference.decode(completions)
    rewards = reference.reward_function(texts)

    # Advantages: each completion against its group, which may span ranks. For rloo and reinforce
    # the log-ratios, without a gradient, carry the KL penalty; naive and grpo have it in the loss.
    # (completions, T): log_pi and log_ref of the tokens; kl, exact, over the vocabulary.
    batch = pad_batch(prompts, completions, reference.loaded.tokenizer.eot, reference.device)
    log_pi, log_ref, kl = compare_in_micro_batches(policy, reference.model, batch, settings)
    log_ratios = (log_pi - log_ref).sum(1).tolist()
    all_rewards, all_log_ratios = (torch.tensor(all_gather(x)) for x in (rewards, log_ratios))
    advantages = policy_gradient.advantages(
        settings.method, all_rewards, all_log_ratios, settings.kl_factor, group_size
    )[indices.start : indices.stop].to(reference.device)

    # Loss: this rank's part of the mean over the completions of all ranks.
    losses = policy_gradient.loss(
        settings.method, advantages, log_pi, kl, batch.completion_mask, settings.kl_factor
    )
    (losses.sum() / batch_size).backward()
    grad_norm = update(policy, optimizers, settings.grad_clip, lr)

    # Metrics: for each name a list of this rank's completions, then of all ranks'.
    tensors = {"kl": kl.sum(1), **policy_gradient.kl_estimates(log_pi, log_ref), "loss": losses,
               "tokens": batch.completion_mask.sum(1), "log_ref": log_ref.sum(1)}  # fmt: skip
    columns = {name: x.detach().tolist() for name, x in tensors.items()} | {"reward": rewards}
    columns |= {"texts": texts, "ended": [completion.ended for completion in completions]}
    columns = {name: all_gather(column) for name, column in columns.items()}
    args = [columns.pop("texts"), columns.pop("ended"), columns["tokens"], columns.pop("log_ref")]
    metrics = monitor.story_metrics(*args, settings.word)
    metrics |= {name: sum(column) / len(column) for name, column in columns.items()}
    return texts, metrics | {"lr": lr, "grad_norm": grad_norm}


def compare_in_micro_batches(policy, reference_model, batch, settings):
    """`policy_gradient.compare` of a PaddedBatch, at most micro_batch_size rows a pass."""
    size, parts = settings.micro_batch_size, []
    kl_in_loss = settings.method in policy_gradient.KL_IN_LOSS
    for rows in zip(batch.tokens.split(size), batch.targets.split(size), strict=True):
        args = policy, reference_model, *rows, settings.temperature, kl_in_loss
        if len(batch.tokens) <= size:
            return policy_gradient.compare(*args)
        # rloo and reinforce need log pi of all completions before any backward pass. So a pass
        # keeps no activations, and the backward computes them again.
        parts.append(recompute(policy_gradient.compare, *args, use_reentrant=False))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def update(policy, optimizers, grad_clip, lr):
    """Sum the ranks' gradients, clip, and step unless they are nan or inf; returns their norm."""
    if world_size() > 1:
        for parameter in policy.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip or math.inf).item()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
    return norm


# ---- the run -----------------------------------------------------------------------------------


def train(settings):
    """Train as complete and checked settings say; returns the state of the run at its end."""
    # ---- 1. the reference: the model to start from, its prompts, the reward and the baseline
    reference = Reference(settings, pick_device(settings.device))
    baseline = reference.metrics
    print0("reference: " + ", ".join(f"{name} {value:.3g}" for name, value in baseline.items()))

    # ---- 2. the policy: new from the reference, or resumed
    state, policy, optimizers = start_or_resume(settings, reference)
    limits = settings.max_iters, settings.max_minutes  # the nearer one ends the run; 0 is none

    # ---- 3. the run folder and its log, of rank 0
    if rank() == 0:
        facts = environment(reference.device) | {"reference": state["reference"]}
        tokenizer = reference.loaded.tokenizer
        checkpoint.create_run_folder(settings.out_dir, policy.config, settings, tokenizer, facts)
        reference.save(settings.out_dir)
        logger = RunLogger(settings.out_dir, state, settings)

    # ---- 4. the loop
    started_at = time.perf_counter() - state["seconds"]  # the clock stands still in plots and saves
    progress = schedule.run_progress(state["step"], state["seconds"], *limits)
    stop, done, alarms = False, progress >= 1, []
    with StopSignal() as signal, checkpoint.CheckpointSaver(settings.out_dir) as saver:
        while not (stop or done):
            step = state["step"]
            decayed = schedule.decay_progress(settings, step, state["seconds"])
            lr = schedule.get_lr(settings, step, decayed)
            texts, metrics = train_step(policy, reference, optimizers, settings, step, lr)
            if not math.isfinite(metrics["grad_norm"]):
                if step:  # keep what was learned before
                    saver.save(policy, optimizers, state)
                raise FloatingPointError(f"step {step + 1}: the gradient is nan or inf")
            state["step"] += 1
            state["tokens"] += round(metrics["tokens"] * settings.batch_size)
            if rank() == 0:
                alarms = monitor.alarms_of_recent([*logger.lines, metrics], baseline)

            # all ranks go by the slowest one's clock, and stop after the same step
            clock = signal.awake(time.perf_counter()) - started_at  # without pauses
            state["seconds"], stop, alarmed = all_reduce_max(clock, signal.received, bool(alarms))
            progress = schedule.run_progress(state["step"], state["seconds"], *limits)
            done = progress >= 1 or (alarmed and settings.stop_on_alarm)
            interval_ends = done or state["step"] % settings.save_interval == 0
            if rank() == 0:
                report(logger, state, settings.word, metrics, alarms, progress)
                if interval_ends:
                    end_interval(logger, state, settings.kl_factor, texts)
            if interval_ends or stop:
                saver.save(policy, optimizers, state)
                if rank() == 0:
                    monitor.plot(settings, baseline, logger.lines)
                barrier()
                started_at = signal.awake(time.perf_counter()) - state["seconds"]
    barrier()
    end = "done with" if progress >= 1 else "stopped after"
    print0(f"{end} step {state['step']}; to go on: reward.py --resume --out_dir={settings.out_dir}")
    return state


def start_or_resume(settings, reference):
    """(state, policy, optimizers) of a new run, or with --resume of its newest checkpoint."""
    loaded, optimizer_state = reference.loaded, {}
    if rank() == 0:
        checkpoint.recover(settings.out_dir)
    barrier()
    if settings.resume:
        reference.check_same(settings.out_dir)
        state = checkpoint.read_state(settings.out_dir)
        optimizer_state = checkpoint.read_optimizer_state(settings.out_dir)
    else:
        base = checkpoint.read_state(loaded.out_dir) if loaded.is_run() else {"data": {}}
        own = loaded.is_run() and checkpoint.read_config(loaded.out_dir)["train"]["dataset"]
        manifest = settings.dataset not in ("", own) and checkpoint.read_manifest(settings.dataset)
        inherited = base.get("eval_data", base["data"])  # of the data that eval reads
        eval_data = checkpoint.data_hashes(manifest) if manifest else inherited
        state = {"step": 0, "seconds": 0.0, "tokens": 0, "last_evaluation": 0, "best": None,
                 "best_step": 0, "kept_steps": [], "data": base["data"], "eval_data": eval_data,
                 "max_length": loaded.max_length, "reference": loaded.identity()}  # fmt: skip
    start = settings.out_dir if settings.resume else settings.init_from
    policy = checkpoint.load_model(start, "latest", reference.device, settings.revision).model
    policy.eval()  # no dropout: the loss is of the distribution that was sampled from
    select_attention(policy, settings.attn, torch.float32)
    optimizers = make_optimizers(policy, settings)
    checkpoint.load_optimizer_state(policy, optimizers, optimizer_state)
    return state | {"model": asdict(policy.config)}, policy, optimizers


def report(logger, state, word, metrics, alarms, progress):
    """Print a progress line and log it."""
    print0(
        f"step {state['step']:>5} | reward {metrics['reward']:+.3f} | kl {metrics['kl']:6.2f} | "
        f"about {word} {metrics['about']:4.0%} | perplexity {metrics['perplexity']:6.2f} | "
        f"repetition {metrics['repetition']:5.1%} | words {metrics['words']:4.0f} | "
        f"eta {schedule.time_left(state['seconds'], progress)}"
        + (f" | ALARM: {', '.join(alarms)}" if alarms else "")
    )
    raised = {f"alarm_{name}": 1 for name in alarms}
    logger.write(step=state["step"], **metrics, seconds=round(state["seconds"], 2), **raised)


def end_interval(logger, state, kl_factor, texts):
    """Log three completions, and note in the state whether the interval is the best so far."""
    lines = [line for line in logger.lines if line["step"] > state["last_evaluation"]]
    score = sum(line["reward"] - kl_factor * line["kl"] for line in lines) / len(lines)
    if state["best"] is None or score > state["best"]:
        state |= {"best": score, "best_step": state["step"]}
    state["last_evaluation"] = state["step"]
    logger.sample(state["step"], "\n\n".join(texts[:3]))


def main():
    settings, origin = load(Settings)
    with process_group():
        settings = complete(settings, origin)
        with only_writer(settings.out_dir), checkpoint.full_disk_explained(settings.out_dir):
            check(settings)
            show(settings, origin, print0)
            train(settings)


if __name__ == "__main__":
    run(main)
