"""
Train a model, on one GPU, a Mac or a laptop's CPU.

    python train.py configs/ts_33m.py                      # the paper's 33M on TinyStories
    python train.py configs/ts_cpu.py --max_minutes=8      # a small one on a laptop
    python train.py --resume --out_dir=out/ts_cpu --max_iters=4000
    python train.py --init_from=out/ts_cpu --source=mine.txt --learning_rate=3e-4

A step takes gradient_accumulation_steps batches of batch_size rows; a row holds row_tokens tokens
of whole stories. Everything lands in the run folder (checkpoint.py says what is in it).
"""

import json
import math
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

import checkpoint
from configs import UserError, load, run, show
from corpus import dataset_folder
from kernels.attention import IMPLEMENTATIONS
from kernels.muon import Muon
from model import GPT, IGNORE, GPTConfig, autocast_for, peak_flops, pick_device, pick_dtype
from sample import generate
from shards import Batches, Dataset
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    # data
    source: str = "tinystories"  # what prepare.py read; with tokenizer it names the data folder
    tokenizer: str = "gpt2"  # gpt2, gpt2-10k, bpe, bytes, or a run folder whose tokenizer was used
    dataset: str = ""  # folder of token shards; default data/<source>-<tokenizer>
    # the run
    out_dir: str = ""  # run folder; default out/<name of the config file>, or of the data
    init_from: str = ""  # a run folder to start from (fine-tuning); default: random weights
    resume: bool = False  # continue the run in out_dir
    max_iters: int = 0  # optimizer steps; 0: one epoch
    max_minutes: float = 0.0  # instead: train this long, evaluations not counted
    eval_interval: int = 1000  # steps between evaluations on the whole validation set
    log_interval: int = 10  # steps between progress lines
    seed: int = 1337  # decides weights, batches and dropout
    # the batch
    batch_size: int = 32  # rows in one forward pass
    row_tokens: int = 0  # tokens in a row, several stories; default: block_size, at least 1,024
    gradient_accumulation_steps: int = 1  # forward passes in a step
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
    attn: str = "auto"  # attention: auto, triton, sdpa or math


# ----------------------------------------------------------------------------------------------
# the optimizer


def make_optimizer(model, settings):
    """
    The optimizers of `model`'s parameters, a list of one or two.

    Matrices decay, vectors and embeddings do not. With optimizer = "muon" the blocks' matrices go
    to Muon and the rest to AdamW.
    """
    lr, decay = settings.learning_rate, settings.weight_decay
    blocks = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h.")]
    mine = {id(p) for p in blocks}
    rest = {"params": [p for p in model.parameters() if id(p) not in mine], "weight_decay": 0.0}
    adamw = partial(torch.optim.AdamW, lr=lr, betas=(settings.beta1, settings.beta2), fused=True)
    if settings.optimizer == "muon":
        return [adamw([rest]), Muon(blocks, lr, weight_decay=decay)]
    return [adamw([{"params": blocks, "weight_decay": decay}, rest])]


def learning_rate(settings, step, progress):
    """
    The learning rate of step number `step`, counted from 0.

    progress: how much of the schedule has passed, 0..1. A linear warm-up multiplies it all.
    """
    progress = min(max(progress, 0.0), 1.0)
    share = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }.get(settings.schedule)
    if share is None:
        raise UserError(f"schedule must be cosine, linear or constant, not '{settings.schedule}'")
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_iters))
    return warmup * (settings.min_lr + share * (settings.learning_rate - settings.min_lr))


# ----------------------------------------------------------------------------------------------
# the run log


class RunLog:
    """Progress lines on the terminal; metrics.jsonl, loss.png and samples.txt in the run folder."""

    def __init__(self, out_dir, step):
        """step: where the run stands; a dead run's lines from later steps are dropped."""
        self.out, self.lines = Path(out_dir), []
        path = self.out / "metrics.jsonl"
        old = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        path.write_text("")
        for line in map(json.loads, old):
            if line["step"] <= step:
                self.write(**line)

    def write(self, **line):
        self.lines.append(line)
        self.append("metrics.jsonl", json.dumps(line))

    def append(self, name, text):
        with open(self.out / name, "a", encoding="utf-8") as file:
            print(text, file=file)

    def plot(self):
        """loss.png: training loss and validation loss over the steps."""
        from matplotlib.figure import Figure  # slow to import, and needed only here

        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        for name, style, label in (("loss", "-", "training"), ("val_loss", "o-", "validation")):
            lines = [line for line in self.lines if name in line]
            x, y = ([line[key] for line in lines] for key in ("step", name))
            axes.plot(x, y, style, label=label, lw=1, ms=4)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=self.out.name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.out / "loss.png", dpi=120)


# ----------------------------------------------------------------------------------------------
# setting up

SHAPE = ("block_size", "n_layer", "n_head", "n_embd")


def complete(settings, origin):
    """
    The settings with every default that depends on another one filled in.

    With --resume the stored settings of the run count, but for what the command line names; with
    --init_from its shape and its tokenizer.
    """
    if settings.resume:
        out_dir = settings.out_dir or checkpoint.newest_run()
        stored = Settings(**checkpoint.read_config(out_dir)["train"])
        named = {name: getattr(settings, name) for name in origin if origin[name] != "default"}
        return replace(stored, **named | {"out_dir": out_dir})
    if settings.init_from:
        stored = checkpoint.read_config(settings.init_from)["model"]
        for name in SHAPE:
            if origin[name] == "command line" and getattr(settings, name) != stored[name]:
                raise UserError(f"{name} of '{settings.init_from}' is {stored[name]}: it stays so")
        settings = replace(settings, **{name: stored[name] for name in SHAPE})
        if origin["tokenizer"] == "default":
            settings = replace(settings, tokenizer=settings.init_from)
    dataset = settings.dataset or dataset_folder(settings.source, settings.tokenizer)
    files = [name for name in origin.values() if name.endswith(".py")]
    run_name = Path(files[-1] if files else dataset).stem
    out_dir = settings.out_dir or f"out/{run_name}"
    row_tokens = settings.row_tokens or max(1024, settings.block_size)
    return replace(settings, dataset=dataset, out_dir=out_dir, row_tokens=row_tokens)


def check(settings):
    """Refuse settings that cannot work, before anything is loaded or written."""
    counts = ("batch_size", "gradient_accumulation_steps", "eval_interval", "log_interval")
    for name in (*SHAPE, *counts):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1")
    if settings.n_embd % settings.n_head:
        raise UserError(f"n_embd {settings.n_embd} is not a multiple of n_head {settings.n_head}")
    if not settings.resume and (Path(settings.out_dir) / "latest").exists():
        raise UserError(
            f"'{settings.out_dir}' holds a run already: --resume continues it, another --out_dir "
            "keeps it, or remove it"
        )
    if settings.optimizer not in ("adamw", "muon"):
        raise UserError(f"optimizer must be adamw or muon, not '{settings.optimizer}'")
    learning_rate(settings, 0, 0.0)
    if settings.attn not in IMPLEMENTATIONS:
        raise UserError(f"attn must be one of {', '.join(IMPLEMENTATIONS)}, not '{settings.attn}'")


def open_data(settings):
    """(train Dataset, val Dataset, Tokenizer) of the token folder, or the command that makes it."""
    if not (Path(settings.dataset) / "manifest.json").exists():
        how = f"--source={settings.source} --tokenizer={settings.tokenizer}"
        config = next((word for word in sys.argv[1:] if word.endswith(".py")), None)
        raise UserError(
            f"no data in '{settings.dataset}'; make it with: python prepare.py {config or how}"
        )
    train, val = (Dataset(settings.dataset, split) for split in ("train", "val"))
    for data in (train, val):
        data.verify()  # a second for a gigabyte, against days of training on damaged tokens
    return train, val, Tokenizer.load(settings.dataset)


def build(settings, tokenizer, device):
    """A model as the settings describe it, with the weights of init_from if that is given."""
    if not settings.init_from:
        shape = {name: getattr(settings, name) for name in (*SHAPE, "dropout")}
        return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).to(device)
    base, changes = settings.init_from, {"dropout": settings.dropout}
    model, its_tokenizer = checkpoint.load_model(base, "latest", device, **changes)
    if not its_tokenizer.same_as(tokenizer):
        raise UserError(
            f"'{settings.dataset}' has another tokenizer than '{base}': prepare it with "
            f"--tokenizer={base}"
        )
    return model.train()


# ----------------------------------------------------------------------------------------------
# training


class Schedule:
    """How far a run is: in steps, or with max_minutes in the time spent on steps."""

    def __init__(self, settings, steps_per_epoch, state):
        """state: the run's, of which "step" and "seconds" (spent on steps so far) are read."""
        self.settings, self.state = settings, state
        self.seconds = settings.max_minutes * 60
        self.max_iters = settings.max_iters or (sys.maxsize if self.seconds else steps_per_epoch)
        self.spent, self.since = state["seconds"], None

    def start(self):
        """The clock runs from here on ..."""
        self.since = time.perf_counter()

    def pause(self):
        """... to here."""
        self.spent, self.since = self.now(), None

    def now(self):
        """Seconds spent on steps so far, evaluations not counted."""
        return self.spent + (0.0 if self.since is None else time.perf_counter() - self.since)

    def learning_rate(self):
        settings, step = self.settings, self.state["step"]
        if self.seconds:
            return learning_rate(settings, step, self.now() / self.seconds)
        decay = (settings.lr_decay_iters or self.max_iters) - settings.warmup_iters
        return learning_rate(settings, step, (step - settings.warmup_iters) / max(1, decay))

    def progress(self):
        """How much of the run is done, 0..1, by whichever of its limits is nearer."""
        steps = self.state["step"] / self.max_iters
        return max(steps, self.now() / self.seconds) if self.seconds else steps

    def left(self):
        """Seconds to go, by the pace so far."""
        return self.now() * (1 / max(self.progress(), 1e-9) - 1)


class Trainer:
    """One training run: its model, data, optimizers and log, and what a step and a report do."""

    def __init__(self, settings):
        """settings: complete and checked; see `complete` and `check`."""
        state = {"step": 0, "seconds": 0.0, "tokens": 0, "best": math.inf, "longest": 0}
        moments = {}
        if settings.resume:
            state, moments = checkpoint.read_state(settings.out_dir)
        self.settings, self.state = settings, state
        self.device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, self.device)
        self.autocast = autocast_for(self.device, dtype)

        self.train_data, self.val_data, self.tokenizer = open_data(settings)
        shape = (settings.block_size, settings.row_tokens, settings.batch_size, settings.seed)
        half = settings.block_size // 2 or 1
        self.batches = Batches(self.train_data, self.tokenizer.eot, *shape)
        self.val_batches = Batches(self.val_data, self.tokenizer.eot, *shape, half, shuffle=False)
        state["longest"] = max(state["longest"], int(self.batches.length.max()))

        torch.manual_seed(settings.seed)
        start = replace(settings, init_from=settings.out_dir) if settings.resume else settings
        self.model = build(start, self.tokenizer, self.device)
        why = self.model.use_attention(settings.attn)
        self.optimizers = make_optimizer(self.model, settings)
        checkpoint.restore_optimizers(self.model, self.optimizers, moments)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        compiled = self.device.type == "cuda" if settings.compile is None else settings.compile
        self.step_model = torch.compile(self.model) if compiled else self.model

        epoch = -(-len(self.batches) // settings.gradient_accumulation_steps)  # in steps
        self.schedule = Schedule(settings, epoch, state)
        context = float((self.batches.length / self.train_data.tokens) @ self.batches.length / 2)
        self.flops = self.model.flops_per_token(context)
        self.peak = peak_flops(self.device)
        self.describe(dtype, f"{self.model.attn} ({why})", epoch)

    def describe(self, dtype, attn, epoch):
        """Say what is trained on what, and write the run folder's fixed files."""
        print(
            f"model: {self.model.num_params():,} parameters, "
            f"{self.model.num_params(embeddings=False):,} without embeddings\n"
            f"data: {self.train_data.tokens:,} tokens in {self.train_data.stories:,} stories, "
            f"{self.batches.padding:.1%} padding, {epoch:,} steps an epoch\n"
            f"machine: {self.device}, {str(dtype).removeprefix('torch.')}, attention {attn}"
        )
        if self.schedule.seconds:
            print("the schedule follows the clock: this run cannot be repeated bit for bit")
        facts = checkpoint.describe_environment(self.device, self.train_data.manifest)
        out, config = self.settings.out_dir, self.model.config
        checkpoint.start_run(out, config, self.settings, self.tokenizer, facts)
        self.log = RunLog(out, self.state["step"])

    def run(self):
        """Train to the end of the schedule; evaluates, samples and saves on the way."""
        self.model.train()
        self.schedule.start()
        self.ticked = (self.schedule.now(), self.state["tokens"])
        while self.schedule.progress() < 1:
            lr = self.schedule.learning_rate()
            loss, norm = self.step(lr)
            last = self.schedule.progress() >= 1
            if self.state["step"] % self.settings.log_interval == 0 or last:
                self.report(lr, loss, norm)
            if self.state["step"] % self.settings.eval_interval == 0 or last:
                self.schedule.pause()
                self.evaluate()
                self.schedule.start()
        return self.state

    def step(self, lr):
        """
        Forward and backward over the micro-batches, then the update; (mean loss, gradient norm).

        Each micro-batch weighs as much as it has targets, so that the gradient is the mean over the
        step's tokens however they fell into rows. Returns tensors on the device: nothing waits.
        """
        step, accumulate = self.state["step"], self.settings.gradient_accumulation_steps
        micro = [self.batches[step * accumulate + i] for i in range(accumulate)]
        counts = [int((batch.targets != IGNORE).sum()) for batch in micro]
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # dropout's
        total = torch.zeros((), device=self.device)
        for batch, count in zip(micro, counts, strict=True):
            batch = batch.to(self.device)
            with self.autocast():
                loss = self.step_model(
                    batch.tokens, batch.targets, positions=batch.positions, start=batch.start
                )
            loss = loss * (count / sum(counts))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        clip = self.settings.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], clip)
        for group in groups:
            group["lr"] = lr
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.state["step"] += 1
        self.state["tokens"] += sum(counts)
        return total, norm

    def report(self, lr, loss, norm):
        """One progress line, and the same in metrics.jsonl."""
        line = {"step": self.state["step"], "loss": loss.item(), "lr": lr, "grad_norm": norm.item()}
        now, tokens = self.schedule.now(), self.state["tokens"]  # .item() waited for the device
        pace = (tokens - self.ticked[1]) / (now - self.ticked[0])
        line |= {"tok_s": round(pace), "tokens": tokens, "seconds": round(now, 2)}
        self.ticked = (now, tokens)
        if self.peak:
            line["mfu"] = line["tok_s"] * self.flops / self.peak
        self.log.write(**line)
        print(
            f"step {line['step']:>6} | loss {line['loss']:.4f} | lr {lr:.2e} | "
            f"norm {line['grad_norm']:.2f} | {line['tok_s']:>7,} tok/s | "
            + (f"mfu {line['mfu']:.1%} | " if self.peak else "")
            + f"eta {timedelta(seconds=round(self.schedule.left()))}",
            flush=True,
        )

    def evaluate(self):
        """Loss on the whole validation set, a sample, the plot, and a checkpoint."""
        state = self.state
        state["seconds"] = self.schedule.now()
        nats, tokens = self.model.evaluate(self.val_batches, self.autocast)
        size = self.val_data.bytes + self.val_data.stories  # a separator counts as one byte
        loss, bpb = nats / tokens, nats / math.log(2) / size
        best = loss < state["best"]
        state["best"] = min(loss, state["best"])
        self.log.write(step=state["step"], val_loss=loss, val_bpb=bpb, seconds=state["seconds"])
        print(f"step {state['step']:>6} | validation loss {loss:.4f} | bits per byte {bpb:.4f}")
        out = self.settings.out_dir
        checkpoint.save(out, self.model, self.optimizers, state | {"val_loss": loss}, best)
        self.model.eval()
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        eot = self.tokenizer.eot
        [(ids, _)] = generate(
            self.model, [eot], eot, 1, limit=state["longest"], temperature=0.8, generator=generator
        )
        self.model.train()
        self.log.append("samples.txt", f"--- step {state['step']}\n{self.tokenizer.decode(ids)}\n")
        self.log.plot()


def main():
    settings, origin = load(Settings)
    settings = complete(settings, origin)
    check(settings)
    show(settings, origin)
    try:
        Trainer(settings).run()
    except torch.OutOfMemoryError:
        raise UserError(
            "out of memory: halve batch_size and double gradient_accumulation_steps (the same "
            "training), or lower row_tokens, n_embd or n_layer"
        ) from None


if __name__ == "__main__":
    run(main)
