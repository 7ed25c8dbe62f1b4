"""Train a model, on a laptop's CPU, a Mac, one GPU or many.

    python train.py configs/ts_33m.py                      # the paper's 33M on TinyStories
    python train.py configs/ts_cpu.py --max_minutes=8      # a small one on a laptop
    python train.py --resume --out_dir=out/ts_cpu          # continue a run that was stopped
    python train.py --init_from=out/ts_cpu --source=mine.txt --learning_rate=3e-4
    torchrun --standalone --nproc_per_node=8 train.py configs/ts_33m.py
    python train.py configs/ts_33m.py --profile            # where a step's time goes

A step has batch_size x gradient_accumulation_steps rows, whatever the number of ranks; each rank
computes an equal share of them, to within a row, at most batch_size at a time. A row holds up to
row_tokens tokens of whole stories; one longer than block_size is cut into chunks. Everything lands
in the run folder (nanostories/training/checkpoint.py says what is in it). Ctrl-C, SIGTERM, SIGHUP
and SIGUSR1 save after the current step; --resume then continues as if nothing had happened.
"""

import contextlib
import itertools
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import record_function

from configs import UserError, load, pick, run, show
from model import GPT, GPTConfig
from nanostories.dataset.packing import make_loaders, open_data, split_rows_across_ranks
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import generate
from nanostories.training import checkpoint, run_config, schedule
from nanostories.training.device import (
    autocast_for,
    compile_model,
    environment,
    peak_flops,
    pick_device,
    pick_dtype,
    select_attention,
)
from nanostories.training.distributed import (
    StopSignal,
    all_reduce_max,
    barrier,
    print0,
    process_group,
    rank,
    world_size,
)
from nanostories.training.logger import RunLogger
from nanostories.training.optim import NonFiniteGuard, make_optimizers
from nanostories.training.profiler import profile
from nanostories.training.validation import validate


@dataclass(frozen=True)
class Settings:
    # data
    source: str = "tinystories"  # what prepare.py read; with tokenizer it names the data folder
    tokenizer: str = "gpt2"  # gpt2, gpt2-10k, bpe, bytes, or a run folder whose tokenizer was used
    dataset: str = ""  # folder of token shards; default data/<source>-<tokenizer>
    loss_on: str = "all"  # all tokens; or story: of TinyStories-Instruct records, the story alone
    # the run
    out_dir: str = ""  # run folder; default out/<name of the config file>, or of the data
    init_from: str = ""  # fine-tune a run folder, gpt2, or a model of the hub; default: none
    revision: str = ""  # which commit, tag or branch of a model of the hub
    resume: bool = False  # continue the run in out_dir
    max_iters: int = 0  # optimizer steps; 0: one epoch, or as long as max_minutes
    max_minutes: float = 0.0  # stop after so many minutes, evaluations not counted; 0: none
    eval_interval: int = 1000  # steps between evaluations on the validation stories
    eval_stories: int = 0  # on so many of them, evenly spread; 0: on all
    save_interval: int = 0  # steps between checkpoints; default: ten minutes. Evaluations save, too
    save_steps: str = ""  # log: keep the checkpoints of steps 1, 2, 4, 8, ... as well
    skip_nonfinite: bool = False  # skip steps with nan or inf; default: stop the run
    profile: bool = False  # trace a few steps to out_dir/profile, and only that
    log_interval: int = 10  # steps between progress lines
    report_to: str = ""  # log to tensorboard or wandb, too; both with a comma
    seed: int = 1337  # decides weights, batches and dropout
    # the batch
    batch_size: int = 32  # most rows in one forward pass
    row_tokens: int = 0  # tokens in a row, several stories; default: block_size, at least 1,024
    gradient_accumulation_steps: int = 1  # times batch_size: the rows of a step, of all ranks
    grow_iters: int = 0  # steps in which a step grows from batch_size rows to all, by doubling
    # the model
    block_size: int = 512  # longest chunk of a story, in tokens
    n_layer: int = 4  # transformer blocks
    n_head: int = 16  # attention heads in each
    n_embd: int = 768  # width
    positions: str = "learned"  # an embedding of each position, or rope: rotary positions
    gelu: str = "tanh"  # GPT-2's tanh, or erf: exact, faster on CPUs
    mlp: str = "gelu"  # or relu2, ReLU squared, or swiglu; all of the same size
    tied_head: bool = True  # the output head is the token embedding; False: its own matrix
    dropout: float = 0.0  # a single epoch needs none; try 0.1 for fine-tuning
    # the optimizer
    optimizer: str = "adamw"  # adamw, or muon: muon for the blocks' matrices, adamw for the rest
    learning_rate: float = 5e-4  # the highest, after the warm-up
    min_lr: float = 0.0  # where cosine and linear end
    schedule: str = "cosine"  # cosine, linear or constant
    warmup_iters: int = 100  # steps of linear warm-up
    lr_decay_iters: int = 0  # steps until min_lr; default: the run, by the clock with max_minutes
    weight_decay: float = 0.1  # of matrices; biases, gains and embeddings have none
    muon_lr_scale: float = 1.0  # muon's learning rate, times learning_rate
    muon_momentum: float = 0.95  # its average of gradients
    embedding_lr_scale: float = 1.0  # the embeddings' learning rate, times learning_rate
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.95  # AdamW's average of their squares
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    # the machine
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes the best there is
    dtype: str = "auto"  # float32, bfloat16 or float16; auto: bfloat16 where the hardware has it
    bfloat16_residual: bool = False  # with dtype bfloat16: the sum that layers add to, too
    compile: bool | None = None  # torch.compile; default: on CUDA
    cuda_graphs: bool | None = None  # default: compiled, on one GPU, n_embd <= 256
    attn: str = "auto"  # attention: auto, triton, sdpa or math
    fused_mlp: bool = False  # on a GPU: GELU inside the matrix products


# ---- the model ---------------------------------------------------------------------------------


def build_model(settings, tokenizer, device, state=None):
    """A GPT: with new random weights, with those of init_from, or with the run's to be resumed.
    The run's state learns how long the stories are that the model can generate already."""
    if not (settings.resume or settings.init_from):
        shape = pick(settings, *run_config.SHAPE, "dropout")
        return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).to(device)
    base = settings.out_dir if settings.resume else settings.init_from
    changes = {"dropout": settings.dropout, "block_size": settings.block_size}
    loaded = checkpoint.load_model(base, "latest", device, settings.revision, **changes)
    if not loaded.tokenizer.same_as(tokenizer):
        named = base if checkpoint.is_run_folder(base) else settings.tokenizer
        advice = f"give prepare.py and train.py --tokenizer={named}"
        raise UserError(f"'{settings.dataset}' has another tokenizer than '{base}': {advice}")
    if state:
        state["max_length"] = loaded.max_length
    return loaded.model.train()


# ---- one step ----------------------------------------------------------------------------------


def step_batches(loader, settings, first_step):
    """Yield for each step its number of tokens, of all ranks, and this rank's micro-batches.

    A micro-batch, at most batch_size rows, comes as (dropout seed, Batch, weight). The weight is
    its share of the step's targets: the weighted losses of all ranks sum to the mean over the
    step's targets."""

    def parts(step):
        """This rank's micro-batches of a step: [(first row, last row), ...] of the loader's."""
        begin, end = schedule.rows_of_step(settings, step)
        ranges = split_rows_across_ranks(end - begin, settings.batch_size, rank(), world_size())
        return [(begin + first, begin + last) for first, last in ranges]

    ranges = itertools.chain.from_iterable(map(parts, itertools.count(first_step)))
    # A thread plans two steps ahead, of the largest.
    passes = -(-settings.gradient_accumulation_steps // world_size())
    stream = loader.stream(ranges, prefetch=2 * passes + 2)
    for step in itertools.count(first_step):
        begin, end = schedule.rows_of_step(settings, step)
        step_targets, micro_batches = loader.target_count(begin, end), []
        # `parts` stands first: zip then ends without taking a batch of the next step.
        for (first, _), batch in zip(parts(step), stream, strict=False):
            # The seed depends on the micro-batch's first row, not on the rank: a step cut into the
            # same micro-batches has the same dropout on any number of ranks.
            entropy = [settings.seed, step, first - begin]
            [seed] = np.random.SeedSequence(entropy).generate_state(1)
            micro_batches.append((int(seed), batch, batch.target_count / step_targets))
        yield loader.token_count(begin, end), micro_batches


def train_step(
    model, optimizers, scaler, guard, micro_batches, step, lr, settings, autocast,
    cuda_graphs=False, timed=record_function,
):  # fmt: skip
    """One optimizer step: forward and backward over this rank's micro-batches, then the update.

    model: as device.compile_model wraps it. micro_batches: see `step_batches`. step: its number,
    from 0. autocast: a function that returns the context to compute in. cuda_graphs: whether such
    launch the passes; gradients are then zeroed, not freed. timed(name): the context to time a part
    in. Returns the mean loss over the step's targets, of all ranks, and the gradient's norm before
    clipping, as 0-D tensors: nothing here waits for the device, but on MPS for one flag."""
    ranks = world_size()
    mean_loss = torch.zeros((), device=micro_batches[0][1].tokens.device)  # this rank's part of it
    for i, (dropout_seed, batch, weight) in enumerate(micro_batches):
        torch.manual_seed(dropout_seed)
        if cuda_graphs:  # one may overwrite the last pass's outputs
            torch.compiler.cudagraph_mark_step_begin()
        is_last = i == len(micro_batches) - 1  # then the ranks exchange their gradients
        with contextlib.nullcontext() if ranks == 1 or is_last else model.no_sync():
            with timed("forward"), autocast():
                # The mean over the micro-batch's targets, times its weight in the step.
                loss = weight * model(batch.tokens, batch.targets, batch.positions, batch.doc_start)
            with timed("backward"):
                # DDP divides the summed gradient by `ranks`; multiplying gives the sum back. The
                # scaler does something in float16 alone.
                scaler.scale(loss * ranks).backward()
        mean_loss += loss.detach()

    with timed("update"):
        if ranks > 1:
            dist.all_reduce(mean_loss)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [parameter for group in groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip or math.inf)
        for group in groups:
            group["lr"] = lr * group["lr_scale"]
        # From the first nan or inf on the optimizers change nothing (with skip_nonfinite: in that
        # step alone), by a flag on the device. On MPS check() reads it here, and may return False.
        call_optimizers = guard.check(step, mean_loss, norm)
        for optimizer in optimizers:
            if call_optimizers:
                scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=not cuda_graphs)
        scaler.update()
    return mean_loss, norm


# ---- a run -------------------------------------------------------------------------------------


def generate_sample(model, tokenizer, data, max_length, seed):
    """A story that the model writes now, from the same random numbers each time."""
    prompt = [tokenizer.eot]
    if data.answers is not None:  # an instruction of Instruct's, cut to fit
        prompt = data.prompt(0).tolist()[: max_length - 1]
    [story] = generate(Decoder(model), [prompt], tokenizer.eot, [[seed, 0]],
                       max_length=max_length, temperature=0.8)  # fmt: skip
    return tokenizer.decode([*prompt[1:], *story.ids])


def train(settings):
    """Train as complete and checked settings (run_config.py) say; returns the run's state."""
    # ---- 1. device and ranks
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    autocast = autocast_for(device, dtype)
    is_main = rank() == 0  # rank 0 alone prints and writes

    # ---- 2. data; of a resumed run the same as before
    if is_main and not settings.profile:
        checkpoint.recover(settings.out_dir)  # removes what a killed run left half-written
    barrier()
    state, optimizer_state = dict(run_config.NEW_STATE), {}
    if settings.resume:
        state = checkpoint.read_state_of_data(settings.out_dir, settings.dataset)
        optimizer_state = checkpoint.read_optimizer_state(settings.out_dir)
    train_data, val_data, tokenizer = data = open_data(settings)
    train_loader, val_loader, val_bytes = make_loaders(settings, *data, device)
    rows = settings.batch_size * settings.gradient_accumulation_steps  # in a step
    steps_per_epoch = schedule.steps_in_an_epoch(settings, train_loader.num_rows)
    max_iters, decay_iters = settings.max_iters, settings.lr_decay_iters
    if not settings.max_minutes:  # else the schedule follows the clock, without lr_decay_iters
        max_iters = max_iters or steps_per_epoch
        decay_iters = decay_iters or max_iters
    limits = max_iters, settings.max_minutes  # the nearer one ends the run; 0 is none
    settings = replace(settings, lr_decay_iters=decay_iters)  # a resumed run keeps its schedule

    # ---- 3. model: new, from the weights of init_from, or resumed
    torch.manual_seed(settings.seed)
    model = build_model(settings, tokenizer, device, state)
    attention_reason = select_attention(model, settings.attn, dtype)
    model.residual_dtype = dtype if settings.bfloat16_residual else None
    model.fused_mlp = settings.fused_mlp

    # ---- 4. optimizer
    optimizers = make_optimizers(model, settings)
    checkpoint.load_optimizer_state(model, optimizers, optimizer_state)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    guard = NonFiniteGuard(optimizers, scaler, device, settings.skip_nonfinite)

    # ---- 5. compile and DDP
    # `model` is saved, `compiled` evaluates, `ddp_model` trains: the same weights in all three.
    compiled, ddp_model, cuda_graphs = compile_model(model, settings, device)
    batches = step_batches(train_loader, settings, state["step"])
    model.train()
    print0(
        f"model: {model.num_params():,} parameters, "
        f"{model.num_params(embeddings=False):,} without embeddings\n"
        f"data: {train_data.tokens:,} tokens in {train_data.stories:,} stories, "
        f"{train_loader.padding:.1%} padding, {steps_per_epoch:,} steps an epoch\n"
        f"step: {rows} rows of {settings.row_tokens:,} tokens on {world_size()} rank(s), in "
        f"micro-batches of at most {min(rows, settings.batch_size)} rows\n"
        f"device: {device}, {str(dtype).removeprefix('torch.')}, "
        f"attention {model.attn} ({attention_reason})"
    )
    if 0 < decay_iters < settings.warmup_iters:
        print0(f"step {decay_iters:,}, the schedule's last, is still within the warm-up")
    if not decay_iters:
        print0("the learning rate follows the clock: this run cannot be repeated bit for bit")
    elif notice := schedule.rate_at_end(settings, max_iters):
        print0(notice)
    if settings.profile:

        def one_step(timed):
            with timed("batch"):
                _, micro_batches = next(batches)
            train_step(ddp_model, optimizers, scaler, guard, micro_batches, 0, 0.0, settings,
                       autocast, cuda_graphs, timed)  # fmt: skip

        print0(profile(one_step, device, Path(settings.out_dir) / f"profile{rank() or ''}"))
        return state

    # ---- 6. log and checkpoint saver
    data_hashes = checkpoint.data_hashes(train_data.manifest)
    state |= {"model": asdict(model.config), "data": data_hashes}
    state["max_length"] = max(state["max_length"], train_loader.longest_chunk)
    flops_per_token = model.flops_per_token(train_loader.mean_context)
    peak_tokens_per_second = (peak_flops(device) or 0) * world_size() / flops_per_token
    if is_main:
        facts = environment(device) | {"data": data_hashes}
        checkpoint.create_run_folder(settings.out_dir, model.config, settings, tokenizer, facts)
        logger = RunLogger(settings.out_dir, state, settings)
    saver = checkpoint.CheckpointSaver(settings.out_dir)

    def save():
        """Start a checkpoint: copy the state for a thread to write. Returns the time."""
        state["skipped"] += guard.count_or_raise()
        state["scaler"] = scaler.state_dict()
        if schedule.is_kept(state["step"], settings) and state["step"] not in state["kept_steps"]:
            state["kept_steps"] = [*state["kept_steps"], state["step"]]
        saver.save(model, optimizers, state)
        return time.perf_counter()

    # ---- 7. the loop
    stop, saved_at = False, time.perf_counter()
    started_at = saved_at - state["seconds"]  # now - started_at: the time without evaluations
    progress = schedule.run_progress(state["step"], state["seconds"], *limits)
    with StopSignal() as signal, saver:
        while True:
            # evaluate when due; a resumed run first does the evaluation that it missed
            if schedule.evaluation_is_due(state, settings, progress):
                if progress >= 1:  # a kill in the last evaluation costs nothing
                    save()
                    saver.wait()
                state["skipped"] += guard.count_or_raise()
                result = validate(model, compiled, val_loader, val_bytes, autocast, signal)
                stop = result is None  # it was asked to stop meanwhile
                if result:
                    loss, bits_per_byte = result
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"step {state['step']}: validation loss {loss}")
                    state["last_evaluation"] = state["step"]
                    if loss < (state["best"] or math.inf):
                        state |= {"best": loss, "best_step": state["step"]}
                    if is_main:
                        logger.validation(state, loss, bits_per_byte)
                        story = generate_sample(
                            model, tokenizer, val_data, state["max_length"], settings.seed
                        )
                        logger.sample(state["step"], story)
                        logger.plot()
                saved_at = save()
                started_at = signal.awake(time.perf_counter()) - state["seconds"]  # not counted
            if progress >= 1 or stop:
                break

            # one step at this step's learning rate
            step = state["step"]
            decayed = schedule.decay_progress(settings, step, state["seconds"])
            lr = schedule.get_lr(settings, step, decayed)
            tokens, micro_batches = next(batches)
            loss, norm = train_step(ddp_model, optimizers, scaler, guard, micro_batches, step, lr,
                                    settings, autocast, cuda_graphs)  # fmt: skip
            state["step"] += 1
            state["tokens"] += tokens

            # all ranks go by the slowest one's clocks, and stop after the same step
            clocks = signal.awake(time.perf_counter()) - started_at, time.perf_counter() - saved_at
            state["seconds"], unsaved, stop = all_reduce_max(*clocks, signal.received)
            progress = schedule.run_progress(state["step"], state["seconds"], *limits)

            # log when due: else the host waits for the device only to evaluate and save
            if state["step"] % settings.log_interval == 0 or progress >= 1:
                state["skipped"] += guard.count_or_raise()
                loss, norm = loss.item(), norm.item()
                if is_main:
                    time_left = schedule.time_left(state["seconds"], progress)
                    logger.progress(state, lr, loss, norm, time_left, peak_tokens_per_second)

            # save when due; an evaluation saves by itself
            if not schedule.evaluation_is_due(state, settings, progress) and (
                stop or schedule.save_is_due(state["step"], settings, unsaved)
            ):
                saved_at = save()
    end = "done with" if progress >= 1 else "stopped after"
    print0(f"{end} step {state['step']}; to go on: train.py --resume --out_dir={settings.out_dir}")
    return state


def main():
    settings, origin = load(Settings)
    with process_group():
        settings = run_config.complete(settings, origin)
        out = Path(settings.out_dir, "profile" if settings.profile else "")
        with run_config.only_writer(out), checkpoint.full_disk_explained(settings.out_dir):
            run_config.check(settings)
            show(settings, origin, print0)
            train(settings)


if __name__ == "__main__":
    run(main)
