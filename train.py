"""
Train a model, on a laptop's CPU, a Mac, one GPU or many.

    python train.py configs/ts_33m.py                      # the paper's 33M on TinyStories
    python train.py configs/ts_cpu.py --max_minutes=8      # a small one on a laptop
    python train.py --resume --out_dir=out/ts_cpu          # go on where a stopped run stood
    python train.py --init_from=out/ts_cpu --source=mine.txt --learning_rate=3e-4
    torchrun --standalone --nproc_per_node=8 train.py configs/ts_33m.py
    python train.py configs/ts_33m.py --profile            # where a step's time goes

A step takes gradient_accumulation_steps batches of batch_size rows, shared by the ranks if there
are several; a row holds row_tokens tokens of whole stories. Everything lands in the run folder
(checkpoint.py says what is in it). Ctrl-C or SIGTERM saves after the step under way; --resume then
goes on as if nothing had happened.
"""

import contextlib
import itertools
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from configs import UserError, load, run, show
from nanostories.dataset.packing import make_loaders, open_data, split_rows_across_ranks
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import generate
from nanostories.training import checkpoint
from nanostories.training.device import (
    autocast_for,
    environment,
    peak_flops,
    pick_device,
    pick_dtype,
    select_attention,
)
from nanostories.training.distributed import (
    StopSignal,
    all_reduce_max,
    all_reduce_sum,
    print0,
    process_group,
    rank,
    world_size,
)
from nanostories.training.logger import RunLogger
from nanostories.training.optim import make_optimizer
from nanostories.training.profiler import profile
from nanostories.training.run_config import build, check, complete, read_run
from nanostories.training.schedule import Schedule, learning_rate  # noqa: F401  others take it from here
from nanostories.training.validation import evaluate


@dataclass(frozen=True)
class Settings:
    # data
    source: str = "tinystories"  # what prepare.py read; with tokenizer it names the data folder
    tokenizer: str = "gpt2"  # gpt2, gpt2-10k, bpe, bytes, or a run folder whose tokenizer was used
    dataset: str = ""  # folder of token shards; default data/<source>-<tokenizer>
    loss_on: str = "all"  # all tokens; or story: of Instruct's records, not their instruction
    # the run
    out_dir: str = ""  # run folder; default out/<name of the config file>, or of the data
    init_from: str = ""  # fine-tune a run folder, gpt2, or a model of the hub; default: none
    revision: str = ""  # which commit, tag or branch of a model of the hub
    resume: bool = False  # continue the run in out_dir
    max_iters: int = 0  # optimizer steps; 0: one epoch
    max_minutes: float = 0.0  # instead: train this long, evaluations not counted
    eval_interval: int = 1000  # steps between evaluations on the validation stories
    eval_stories: int = 0  # on so many of them, evenly spread; 0: on all
    save_interval: int = 0  # steps between checkpoints; default: each evaluation and ten minutes
    save_steps: str = ""  # log: keep the checkpoints of steps 1, 2, 4, 8, ... as well
    skip_nonfinite: bool = False  # leave a step with a nan or inf out; default: stop the run
    profile: bool = False  # trace a few steps to out_dir/profile, and only that
    log_interval: int = 10  # steps between progress lines
    seed: int = 1337  # decides weights, batches and dropout
    # the batch
    batch_size: int = 32  # rows in one forward pass
    row_tokens: int = 0  # tokens in a row, several stories; default: block_size, at least 1,024
    gradient_accumulation_steps: int = 1  # such passes in a step, those of all ranks together
    # the model
    block_size: int = 512  # longest story piece, in tokens
    n_layer: int = 4  # transformer blocks
    n_head: int = 16  # attention heads in each
    n_embd: int = 768  # width
    dropout: float = 0.0  # a single epoch needs none; try 0.1 for fine-tuning
    # the optimizer
    optimizer: str = "adamw"  # adamw, or muon: muon for the blocks' matrices, adamw for the rest
    learning_rate: float = 5e-4  # the highest, after the warm-up
    min_lr: float = 0.0  # where the schedule ends
    schedule: str = "cosine"  # cosine, linear or constant
    warmup_iters: int = 100  # steps from 0 up to learning_rate
    lr_decay_iters: int = 0  # steps until min_lr; default: the whole run
    weight_decay: float = 0.1  # of matrices; biases, gains and embeddings have none
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.95  # AdamW's average of their squares
    grad_clip: float = 1.0  # longest gradient; 0: no clipping
    # the machine
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is
    dtype: str = "auto"  # float32, bfloat16 or float16; auto: bfloat16 where the hardware has it
    compile: bool | None = None  # torch.compile; default: on CUDA
    cuda_graphs: bool | None = None  # launch a pass at once; default: compiled and n_embd <= 256
    attn: str = "auto"  # attention: auto, triton, sdpa or math


# ----------------------------------------------------------------------------------------------
# the optimizer


# ----------------------------------------------------------------------------------------------
# one step


class Step:
    """
    An optimizer step of a model: forward and backward over this rank's rows, then the update.

    A step takes batch_size x gradient_accumulation_steps rows, whatever the number of ranks. A
    rank computes its share in passes of at most batch_size rows; a pass weighs as much as it has
    targets, so that the gradient is the mean over the step's tokens however they fell into rows,
    passes and ranks. Nothing here waits for the device.
    """

    def __init__(self, model, optimizers, batches, settings, first=0):
        """batches: a Batches on the model's device. first: the number of the first step to come."""
        self.model, self.optimizers, self.settings = model, optimizers, settings
        self.batches, self.device = batches, batches.device
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.autocast = autocast_for(self.device, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.rows = settings.batch_size * settings.gradient_accumulation_steps
        self.share = split_rows_across_ranks(self.rows, settings.batch_size, rank(), world_size())
        self.feed = batches.stream(
            (step * self.rows + begin, step * self.rows + end)
            for step in itertools.count(first)
            for begin, end in self.share
        )
        self._compile()
        # Kept on the device: how many steps had a number that was nan or inf, and the first's.
        self.bad, self.first_bad = (torch.zeros((), device=self.device) for _ in range(2))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._hold_back)

    def _compile(self):
        """`forward`: the model, compiled where that pays; `shared`: the same among the ranks."""
        settings, cuda = self.settings, self.device.type == "cuda"
        compiled = cuda if settings.compile is None else settings.compile
        graphs = settings.cuda_graphs
        if graphs is None:  # a small model's kernels are over sooner than they are launched
            graphs = settings.n_embd <= 256 and world_size() == 1
        self.graphs = cuda and compiled and graphs
        if cuda:
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        if self.graphs:  # a graph's own memory is used again: gradients must not begin there
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.forward = self.model
        if compiled:
            # On CPUs attention goes story by story: no graph can hold that whole.
            how = {"fullgraph": cuda, "mode": "reduce-overhead" if self.graphs else None}
            self.forward = torch.compile(self.model, dynamic=False, **how)
        self.shared = self.forward
        if world_size() > 1:
            gpu = [self.device.index] if cuda else None
            self.shared = DistributedDataParallel(self.forward, gpu, gradient_as_bucket_view=True)

    def __call__(self, step, lr, phase=record_function):
        """
        Step number `step`; they come in order. Returns its mean loss and its gradient's norm, as
        tensors, and the tokens of all ranks. phase(name): the context to time a part in.
        """
        rows = step * self.rows, (step + 1) * self.rows
        count = self.batches.target_count(*rows)
        total = torch.zeros((), device=self.device)
        for first, last in self.share:
            with phase("batch"):
                batch = next(self.feed)
            # Dropout is the same for the same rows, whichever rank and pass they fall to.
            key = [self.settings.seed, step, first]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            apart = world_size() > 1 and (first, last) != self.share[-1]  # gradients meet but once
            with self.shared.no_sync() if apart else contextlib.nullcontext():
                with phase("forward"), self.autocast():
                    where = {"positions": batch.positions, "start": batch.doc_start}
                    loss = self.shared(batch.tokens, batch.targets, **where)
                    loss = loss * (batch.target_count / count)
                with phase("backward"):
                    # torch takes the ranks' mean, where the weights above ask for their sum.
                    self.scaler.scale(loss * world_size()).backward()
            total += loss.detach()
        with phase("update"):
            norm = self._update(step, lr, total)
        return total, norm, self.batches.token_count(*rows)

    def _update(self, step, lr, loss):
        """Clip the gradient and let the optimizers step; returns the gradient's norm."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        clip = self.settings.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], clip)
        if world_size() > 1:
            dist.all_reduce(loss)
        # In float16 a gradient may overflow: the scaler lowers its scale, until there is none left.
        scale, infinite = self.scaler.scale(torch.ones_like(loss)), ~norm.isfinite()
        bad = ~loss.isfinite() | (infinite & (scale < 2))
        self.first_bad = torch.where(bad & (self.bad == 0), step + 1, self.first_bad)
        self.bad += bad
        # A bad step is left out; or all of them from it on, until the host knows.
        self.held = (infinite | (bad if self.settings.skip_nonfinite else self.bad > 0)).float()
        blind = self.device.type == "mps" and self.held.item()  # its AdamW knows no found_inf
        for group in groups:
            group["lr"] = lr
        for optimizer in self.optimizers:
            if not blind:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=not self.graphs)
        self.scaler.update()
        return norm

    def _hold_back(self, optimizer, *_):
        """Before an optimizer steps: found_inf = 1 tells it, on the device, to change nothing."""
        optimizer.found_inf = self.held

    def skipped(self):
        """
        Steps left out since the last call: the host reads here what the device noted.

        Raises UserError where skip_nonfinite does not allow for any.
        """
        bad = int(self.bad)
        if bad and not self.settings.skip_nonfinite:
            raise UserError(
                f"step {int(self.first_bad)}: the loss or the gradient is nan or inf; no weight "
                "has changed since the step before. A lower learning_rate may help, or --resume "
                "with --skip_nonfinite"
            )
        self.bad.zero_()
        return bad


# ----------------------------------------------------------------------------------------------
# a run


class Trainer:
    """One training run: its model, data, schedule and folder, and what is done when."""

    def __init__(self, settings):
        """settings: complete and checked; see run_config.py."""
        self.device = device = pick_device(settings.device)
        self.train_data, self.val_data, self.tokenizer = data = open_data(settings)
        self.state, moments = read_run(settings, self.train_data)

        batches, self.val, self.val_bytes = make_loaders(settings, *data, device)

        torch.manual_seed(settings.seed)
        start = replace(settings, init_from=settings.out_dir) if settings.resume else settings
        self.model = build(start, self.tokenizer, device)
        why = select_attention(self.model, settings.attn, pick_dtype(settings.dtype, device))
        self.optimizers = make_optimizer(self.model, settings)
        checkpoint.load_optimizer_state(self.model, self.optimizers, moments)
        self.compute = Step(self.model, self.optimizers, batches, settings, self.state["step"])
        if self.state["scaler"]:
            self.compute.scaler.load_state_dict(self.state["scaler"])

        epoch = -(-batches.num_rows // self.compute.rows)  # in steps
        self.schedule = Schedule(settings, epoch, self.state)
        self.settings = self.schedule.settings
        self.state["longest"] = max(self.state["longest"], batches.longest_chunk)
        flops, peak = self.model.flops_per_token(batches.mean_context), peak_flops(device)
        self.top_pace = peak * world_size() / flops if peak else None  # tokens a second
        self.describe(f"{self.model.attn} ({why})", epoch)
        self.open_folder()

    def describe(self, attn, epoch):
        """Say what is trained on what, and how."""
        settings, data, compute = self.settings, self.train_data, self.compute
        passes = [last - first for first, last in compute.share]
        print0(
            f"model: {self.model.num_params():,} parameters, "
            f"{self.model.num_params(embeddings=False):,} without embeddings\n"
            f"data: {data.tokens:,} tokens in {data.stories:,} stories, "
            f"{compute.batches.padding:.1%} padding, {epoch:,} steps an epoch\n"
            f"step: {compute.rows} rows of {settings.row_tokens:,} tokens by {world_size()} rank(s)"
            f" in {len(passes)} pass(es) of {max(passes)}\n"
            f"machine: {self.device}, {str(compute.dtype).removeprefix('torch.')}, attention {attn}"
        )
        if not settings.lr_decay_iters:
            print0("the schedule follows the clock: this run cannot be repeated bit for bit")
        elif settings.lr_decay_iters < self.schedule.max_iters < sys.maxsize:
            print0(
                f"the schedule ends at step {settings.lr_decay_iters:,}; from there on the "
                f"learning rate is {settings.min_lr}"
            )

    def open_folder(self):
        """The run folder's fixed files, its log, and the thread that saves: rank 0's alone."""
        settings, config = self.settings, self.model.config
        data = checkpoint.data_hashes(self.train_data.manifest)
        facts = environment(self.device) | {"data": data}
        self.state |= {"model": asdict(config), "data": data}
        if rank() == 0 and not settings.profile:
            checkpoint.create_run_folder(settings.out_dir, config, settings, self.tokenizer, facts)
            self.log = RunLogger(settings.out_dir, self.state)
            self.saver = checkpoint.CheckpointSaver(settings.out_dir)

    def run(self):
        """Train to the end of the schedule, or until asked to stop; returns the state."""
        settings, state, schedule = self.settings, self.state, self.schedule
        stop, self.saved = False, time.monotonic()
        self.model.train()
        schedule.start()
        with StopSignal() as self.interrupt:
            if self.evaluation_is_due():  # the run was stopped when it was about to
                stop = not self.evaluate()
            while schedule.progress() < 1 and not stop:
                lr = schedule.learning_rate()
                loss, norm = self.step(lr)
                # All ranks go by the slowest one's clocks, and stop after the same step.
                clocks = schedule.now(), time.monotonic() - self.saved
                schedule.spent, late, stop = all_reduce_max(*clocks, self.interrupt.asked)
                if state["step"] % settings.log_interval == 0 or schedule.progress() >= 1:
                    self.report(lr, loss, norm)
                if self.evaluation_is_due():
                    stop = not self.evaluate()
                elif stop or self.save_is_due(late):
                    self.save()
            if rank() == 0:
                self.saver.wait()
        end = "stopped after" if schedule.progress() < 1 else "done with"
        print0(f"{end} step {state['step']}; to go on: --resume --out_dir={settings.out_dir}")
        return state

    def step(self, lr, phase=record_function):
        """One step; its loss and gradient norm, see Step."""
        loss, norm, tokens = self.compute(self.state["step"], lr, phase)
        self.state["step"] += 1
        self.state["tokens"] += tokens
        return loss, norm

    def report(self, lr, loss, norm):
        """A progress line."""
        self.state["skipped"] += self.compute.skipped()
        loss, norm, schedule = loss.item(), norm.item(), self.schedule
        if rank() == 0:
            left = schedule.left()
            self.log.progress(self.state, lr, loss, norm, schedule.spent, left, self.top_pace)

    def evaluation_is_due(self):
        """True where the schedule has one, or ends, and it has not been done yet."""
        step = self.state["step"]
        regular = step % self.settings.eval_interval == 0
        return step > self.state["evaluated"] and (regular or self.schedule.progress() >= 1)

    def evaluate(self):
        """
        Loss on the validation stories, by all ranks together; a sample, the plot, a checkpoint.

        Returns False if asked to stop meanwhile: then there is only the checkpoint.
        """
        state, val = self.state, self.val
        state["skipped"] += self.compute.skipped()
        ranges = (val.row_range(i) for i in range(rank(), len(val), world_size()))
        ranges = itertools.takewhile(lambda _: not self.interrupt.asked, ranges)
        mine = evaluate(self.model, val.stream(ranges), self.compute.autocast, self.compute.forward)
        nats, tokens = all_reduce_sum(*mine)
        if whole := tokens == val.row_targets.sum():
            self.note(nats / tokens, nats)
        self.save()
        self.schedule.start()
        return whole

    def note(self, loss, nats):
        """An evaluation's result, for the state, the log and the plot."""
        state, bpb = self.state, nats / math.log(2) / self.val_bytes
        state["evaluated"] = state["step"]
        if loss < (state["best"] or math.inf):
            state |= {"best": loss, "best_step": state["step"]}
        print0(f"step {state['step']:>6} | validation loss {loss:.4f} | bits per byte {bpb:.4f}")
        if rank() == 0:
            spent = self.schedule.spent
            self.log.write(step=state["step"], val_loss=loss, val_bpb=bpb, seconds=spent)
            self.log.sample(state["step"], self.story())
            self.log.plot()

    def story(self):
        """A story that the model tells now, by the same random numbers each time."""
        eot, how = self.tokenizer.eot, {"max_length": self.state["longest"], "temperature": 0.8}
        asked = [eot] if self.val_data.answers is None else self.val_data.prompt(0).tolist()
        asked = asked[: self.state["longest"] - 1]  # an instruction of Instruct's, cut to fit
        [story] = generate(Decoder(self.model), [asked], eot, [[self.settings.seed, 0]], **how)
        return self.tokenizer.decode([*asked[1:], *story.ids])

    def save_is_due(self, seconds):
        """Between evaluations: at save_interval's steps, or by default after ten minutes."""
        every = self.settings.save_interval
        return self.to_be_kept() or (self.state["step"] % every == 0 if every else seconds > 600)

    def to_be_kept(self):
        """True at steps 1, 2, 4, 8, ... if their checkpoints are to stay."""
        step = self.state["step"]
        return self.settings.save_steps == "log" and step & (step - 1) == 0

    def save(self):
        """A checkpoint, from rank 0."""
        state, self.saved = self.state, time.monotonic()
        state["skipped"] += self.compute.skipped()
        state |= {"seconds": self.schedule.spent, "scaler": self.compute.scaler.state_dict()}
        if self.to_be_kept():
            state["kept"] = [*state["kept"], state["step"]]
        if rank() == 0:
            self.saver.save(self.model, self.optimizers, state)

    def profile(self):
        """Trace a few steps and say where they went; nothing is logged, evaluated or saved."""
        self.model.train()
        folder = Path(self.settings.out_dir) / f"profile{rank() or ''}"
        print0(profile(partial(self.step, 0.0), self.device, folder))


def main():
    settings, origin = load(Settings)
    with process_group():
        settings = complete(settings, origin)
        check(settings)
        if rank() == 0:
            show(settings, origin)
        try:
            with checkpoint.full_disk_explained(settings.out_dir):
                trainer = Trainer(settings)
                (trainer.profile if settings.profile else trainer.run)()
        except torch.OutOfMemoryError:
            raise UserError(
                "out of memory: halve batch_size and double gradient_accumulation_steps (the same "
                "training), or lower row_tokens, n_embd or n_layer"
            ) from None


if __name__ == "__main__":
    run(main)
