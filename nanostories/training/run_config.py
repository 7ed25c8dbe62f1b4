"""Which settings a run has: a new one, one that starts from other weights, or one that is resumed.

A new run fills in what its settings leave open. With init_from the shape is that of the model it
starts from. A resumed run takes the settings it stored and refuses to become another run.
"""

import contextlib
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from configs import UserError, check_ranges, explained, pick
from kernels.backend import unavailable
from model import GPTConfig
from nanostories.dataset.sources import dataset_folder
from nanostories.storage import lock
from nanostories.training import checkpoint, hub_layouts, huggingface, model_settings
from nanostories.training.device import memory_of, pick_device, pick_dtype
from nanostories.training.distributed import all_gather, rank, world_size
from nanostories.training.logger import services

SHAPE = ("block_size", "n_layer", "n_head", "n_embd", "positions", "gelu", "mlp", "tied_head")
# What --resume may change: none of these changes what a step with finite numbers computes.
MAY_CHANGE = ("resume", "out_dir", "max_iters", "max_minutes", "eval_interval", "save_interval",
              "device", "compile", "cuda_graphs", "attn", "fused_mlp", "skip_nonfinite", "profile",
              "report_to")  # fmt: skip
FILLED_IN = ("dataset", "row_tokens", "lr_decay_iters")  # stored as what 0 or "" came to


def check(settings):
    """Raise UserError for settings that cannot work, before anything is loaded or written."""
    check_ranges(settings)
    services(settings.report_to)
    with explained("", ValueError):
        GPTConfig(**pick(settings, *SHAPE))
    rows = settings.batch_size * settings.gradient_accumulation_steps
    smallest = settings.batch_size if settings.grow_iters else rows
    if (ranks := world_size()) > smallest:
        raise UserError(f"{ranks} ranks cannot share a step of {smallest} rows: change batch_size")
    if rows > 10**6:
        raise UserError(f"a step of {rows:,} rows is too large: lower gradient_accumulation_steps")
    width, device = settings.n_embd, pick_device(settings.device)
    if settings.fused_mlp and settings.mlp != "gelu":
        raise UserError(f"fused_mlp computes mlp=gelu alone, not {settings.mlp}; leave it out")
    if settings.fused_mlp and (obstacle := unavailable(device)):
        raise UserError(f"fused_mlp cannot run: {obstacle}; leave it out")
    # 16 bytes a weight: itself, its gradient and two moments; 20 or more an activation.
    size = 16 * (12 * settings.n_layer * width + settings.block_size) * width
    rows = min(settings.batch_size, -(-rows // ranks))
    size += 20 * rows * settings.row_tokens * settings.n_layer * width
    if settings.bfloat16_residual and pick_dtype(settings.dtype, device) != torch.bfloat16:
        raise UserError("bfloat16_residual needs dtype=bfloat16")
    if size > (memory := memory_of(device)):
        raise UserError(
            f"this training takes {size / 1e9:,.1f} GB of memory or more, and {device} has "
            f"{memory / 1e9:,.1f}: lower batch_size, n_embd or n_layer"
        )
    if not (settings.resume or settings.profile):
        check_free(settings.out_dir)


@contextlib.contextmanager
def only_writer(out_dir):
    """Rank 0 holds storage.lock of the run folder; where it is refused, every rank raises that."""
    with contextlib.ExitStack() as stack:
        refusals = []
        try:
            if rank() == 0:
                stack.enter_context(lock(out_dir))
        except UserError as error:
            refusals.append(str(error))
        for line in all_gather(refusals):
            raise UserError(line)
        yield


def check_free(out_dir):
    """Raise UserError where a new run would overwrite another one, or out_dir is no folder."""
    if str(out_dir) != str(out_dir).encode(errors="replace").decode():
        raise UserError(f"'{out_dir}' is not UTF-8, which safetensors needs: name another out_dir")
    if os.path.lexists(out_dir) and not Path(out_dir).is_dir():
        raise UserError(f"'{out_dir}' is no folder, or a link to one that is missing")
    if checkpoint.steps_of(out_dir) or (Path(out_dir) / "latest").is_dir():
        raise UserError(f"'{out_dir}' holds a run already: --resume it, or name another --out_dir")


def complete(settings, origin):
    """The settings with the defaults filled in that depend on others: with --resume the run's, with
    --init_from its shape and tokenizer. origin: of configs.load."""
    config_files = [name for name in origin.values() if name.endswith(".py")]
    out_dir = settings.out_dir or (config_files and f"out/{Path(config_files[-1]).stem}")
    if settings.resume:
        return resumed(settings, origin, out_dir or model_settings.newest_run())
    if settings.init_from:
        settings = like_init_from(settings, origin)
    dataset = settings.dataset or dataset_folder(settings.source, settings.tokenizer)
    return replace(
        settings,
        dataset=dataset,
        out_dir=out_dir or f"out/{Path(dataset).stem}",
        row_tokens=settings.row_tokens or max(1024, settings.block_size),
    )


def like_init_from(settings, origin):
    """The settings with the shape and, unless one was named, the tokenizer of init_from."""
    base = tokenizer = settings.init_from
    if checkpoint.is_run_folder(base):
        stored = asdict(GPTConfig()) | checkpoint.read_config(base)["model"]
    else:
        folder = huggingface.resolve_model(base, settings.revision)
        config, positions = hub_layouts.read_model_config(folder, base)
        stored = asdict(replace(config, block_size=positions))
        name = huggingface.load_tokenizer(folder, config.vocab_size).name
        tokenizer = "gpt2" if name == "gpt2" and config.vocab_size == 50257 else str(folder)
    shape = {name: stored[name] for name in SHAPE}
    for name in SHAPE:
        value = getattr(settings, name)
        if origin[name] == "command line" and value != stored[name]:
            if name != "block_size" or value > stored[name]:
                raise UserError(f"{name} of '{base}' is {stored[name]}: it stays so")
            shape[name] = value  # fewer positions: the rest is cut off
    if origin["tokenizer"] == "default":
        settings = replace(settings, tokenizer=tokenizer)
    return replace(settings, **shape)


def resumed(settings, origin, out_dir):
    """The stored settings of the run in out_dir, but for those that may change and were named."""
    defaults = asdict(type(settings)())  # for settings that are younger than the run
    stored = defaults | checkpoint.read_config(out_dir)["train"]
    if names := sorted(stored.keys() ^ defaults.keys()):
        if "max_similarity" in names:
            raise UserError(f"'{out_dir}' is a run of reward.py: resume it with that")
        names = ", ".join(names)
        raise UserError(f"'{out_dir}' was written by another version of this code: see {names}")
    # Of a run that started from other weights the shape was theirs, not the config file's.
    inherited = SHAPE if stored["init_from"] else ()
    named = {name: getattr(settings, name) for name in origin if origin[name] == "command line"
             or (origin[name] != "default" and name not in inherited)}  # fmt: skip
    for name, value in named.items():
        is_default = name in FILLED_IN and not value
        if name not in MAY_CHANGE and value != stored[name] and not is_default:
            raise UserError(
                f"{name} of '{out_dir}' is {stored[name]!r}, not {value!r}, and --resume keeps it; "
                "--init_from starts another run from its weights"
            )
    changes = {name: value for name, value in named.items() if name in MAY_CHANGE}
    return replace(type(settings)(**stored), **changes | {"out_dir": out_dir})


NEW_STATE = {"step": 0, "seconds": 0.0, "tokens": 0, "max_length": 0, "skipped": 0,
             "last_evaluation": 0, "best": None, "best_step": 0, "kept_steps": [],
             "scaler": {}}  # fmt: skip
