"""
How a run starts: its settings in full, checked; its data; its model; where it stands.

train.py comes here before it trains. A new run fills in what its settings leave open, a resumed one
takes what it stored and refuses to become another run.
"""

from dataclasses import asdict, replace
from pathlib import Path

from configs import UserError
from model import GPT, GPTConfig
from nanostories.dataset.sources import dataset_folder
from nanostories.training import checkpoint, huggingface
from nanostories.training.distributed import barrier, rank, world_size
from nanostories.training.schedule import SCHEDULES

SHAPE = ("block_size", "n_layer", "n_head", "n_embd")
NOT_NEGATIVE = (
    "row_tokens", "max_iters", "max_minutes", "eval_stories", "save_interval", "seed",
    "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "weight_decay", "grad_clip",
)  # fmt: skip
# What --resume may change: none of these changes what a step with finite numbers computes.
MAY_CHANGE = ("resume", "out_dir", "max_iters", "max_minutes", "eval_interval", "device", "compile",
              "cuda_graphs", "attn", "skip_nonfinite", "profile")  # fmt: skip
FILLED_IN = ("dataset", "row_tokens", "lr_decay_iters")  # 0 or "" is stored as what it came to


def complete(settings, origin):
    """
    The settings with every default that depends on another one filled in.

    With --resume they are the run's, as it stored them; with --init_from its shape and tokenizer.
    """
    files = [name for name in origin.values() if name.endswith(".py")]
    if settings.resume:
        ours = f"out/{Path(files[-1]).stem}" if files else None
        return resumed(settings, origin, settings.out_dir or ours or checkpoint.newest_run())
    if settings.init_from:
        settings = like_init_from(settings, origin)
    dataset = settings.dataset or dataset_folder(settings.source, settings.tokenizer)
    out_dir = settings.out_dir or f"out/{Path(files[-1] if files else dataset).stem}"
    row_tokens = settings.row_tokens or max(1024, settings.block_size)
    return replace(settings, dataset=dataset, out_dir=out_dir, row_tokens=row_tokens)


def like_init_from(settings, origin):
    """The settings with the shape and, unless one was named, the tokenizer of init_from."""
    base, tokenizer = settings.init_from, settings.init_from
    if checkpoint.is_run_folder(base):
        stored = checkpoint.read_config(base)["model"]
    else:
        folder = huggingface.resolve_model(base, settings.revision)
        config, trained = huggingface.read_model_config(folder, base)
        huggingface.warn_about_unused_positions(base, config, trained)
        stored = asdict(replace(config, block_size=trained))
        found = huggingface.load_tokenizer(folder, config.vocab_size)
        is_gpt2 = found.name == "gpt2" and found.vocab_size == 50257
        tokenizer = "gpt2" if is_gpt2 else str(folder)
    shape = {name: stored[name] for name in SHAPE}
    for name in SHAPE:
        asked = getattr(settings, name)
        if origin[name] == "command line" and asked != stored[name]:
            if name != "block_size" or asked > stored[name]:
                raise UserError(f"{name} of '{base}' is {stored[name]}: it stays so")
            shape[name] = asked  # fewer positions: the rest is cut off
    if origin["tokenizer"] == "default":
        settings = replace(settings, tokenizer=tokenizer)
    return replace(settings, **shape)


def resumed(settings, origin, out_dir):
    """The stored settings of the run in out_dir, but for those that may change and were named."""
    defaults = asdict(type(settings)())  # for settings that are younger than the run
    stored = defaults | checkpoint.read_config(out_dir)["train"]
    if stored.keys() != defaults.keys():
        names = ", ".join(sorted(stored.keys() ^ asdict(settings).keys()))
        raise UserError(f"'{out_dir}' was written by another version of train.py: see {names}")
    named = {name: getattr(settings, name) for name in origin if origin[name] != "default"}
    for name, value in named.items():
        default = name in FILLED_IN and not value
        if name not in MAY_CHANGE and value != stored[name] and not default:
            raise UserError(
                f"{name} of '{out_dir}' is {stored[name]!r}, not {value!r}: --resume continues the "
                "same run; --init_from starts another from its weights"
            )
    changes = {name: value for name, value in named.items() if name in MAY_CHANGE}
    return replace(type(settings)(**stored), **changes | {"out_dir": out_dir})


def check_free(out_dir):
    """Raise UserError where a new run would overwrite another one, or cannot be."""
    if Path(out_dir).exists() and not Path(out_dir).is_dir():
        raise UserError(f"'{out_dir}' is no folder")
    if checkpoint.steps_of(out_dir):
        raise UserError(
            f"'{out_dir}' holds a run already: --resume continues it, another --out_dir keeps it, "
            "or remove it"
        )


def check(settings):
    """Refuse settings that cannot work, before anything is loaded or written."""
    counts = ("batch_size", "gradient_accumulation_steps", "eval_interval", "log_interval")
    for name in (*SHAPE, *counts):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1")
    for name in NOT_NEGATIVE:
        if getattr(settings, name) < 0:
            raise UserError(f"{name} must not be negative")
    for name in ("dropout", "beta1", "beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 0 and below 1")
    if settings.n_embd % settings.n_head:
        raise UserError(f"n_embd {settings.n_embd} is not a multiple of n_head {settings.n_head}")
    if not (settings.resume or settings.profile):
        check_free(settings.out_dir)
    if settings.optimizer not in ("adamw", "muon"):
        raise UserError(f"optimizer must be adamw or muon, not '{settings.optimizer}'")
    if settings.loss_on not in ("all", "story"):
        raise UserError(f"loss_on must be all or story, not '{settings.loss_on}'")
    if settings.save_steps not in ("", "log"):
        raise UserError(f"save_steps must be log or nothing, not '{settings.save_steps}'")
    if settings.schedule not in SCHEDULES:
        raise UserError(f"schedule must be cosine, linear or constant, not '{settings.schedule}'")
    rows = settings.batch_size * settings.gradient_accumulation_steps
    if rows < world_size():
        raise UserError(f"{world_size()} ranks cannot share {rows} rows: raise batch_size")


def build(settings, tokenizer, device):
    """A model as the settings describe it, with the weights of init_from if that is given."""
    if not settings.init_from:
        shape = {name: getattr(settings, name) for name in (*SHAPE, "dropout")}
        return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape)).to(device)
    base = settings.init_from
    changes = {"dropout": settings.dropout, "block_size": settings.block_size}
    found = checkpoint.load_model(base, "latest", device, settings.revision, **changes)
    if not found.tokenizer.same_as(tokenizer):
        raise UserError(
            f"'{settings.dataset}' has another tokenizer than '{base}': prepare it with "
            f"--tokenizer={settings.tokenizer}"
        )
    return found.model.train()


def read_run(settings, data):
    """
    (state, optimizer tensors): a new run's, or with --resume the newest checkpoint's.

    data: the Dataset to train on. Raises UserError if the run was trained on other tokens, or with
    another tokenizer.
    """
    out_dir = settings.out_dir
    if rank() == 0 and not settings.profile:
        checkpoint.recover(out_dir)
    barrier()
    if not settings.resume:
        new = {"step": 0, "seconds": 0.0, "tokens": 0, "longest": 0, "evaluated": 0, "skipped": 0,
               "best": None, "best_step": 0, "kept": [], "scaler": {}}  # fmt: skip
        return new, {}
    state = checkpoint.read_state(out_dir)
    before, now = state["data"], checkpoint.data_hashes(data.manifest)
    differ = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    if differ:
        what = "another tokenizer" if "tokenizer.json" in differ else "other data"
        raise UserError(
            f"'{data.folder}' holds {what} than '{out_dir}' was trained on: {', '.join(differ)} "
            "differ; prepare the same again, or start a new run with --init_from"
        )
    return state, checkpoint.read_optimizer_state(out_dir)
