"""
Run folders: everything one training run leaves behind, and how it is read back.

    out/<run>/
        config.json       the architecture ("model") and every setting of train.py ("train")
        tokenizer.json    the tokenizer the model was trained with
        env.json          git commit, versions, device, hash of the data
        metrics.jsonl     one line for each log and each evaluation; loss.png, samples.txt
        checkpoints/<step>/   model.safetensors, state.safetensors (optimizer), state.json
        latest, best      symlinks into checkpoints/

A checkpoint is written under a temporary name, flushed to the disk and renamed, and only then do
the symlinks swing over to it: whenever the power fails, `latest` points to a complete one.
Weights and state are safetensors, facts are JSON: nothing is ever unpickled.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configs import ROOT, UserError
from model import GPT, GPTConfig
from shards import sha256
from tokenizer import Tokenizer


def write_json(path, value):
    """Write `value` as JSON so that `path` holds the old text or the new, never half of one."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def describe_environment(device, data_manifest):
    """What env.json holds; data_manifest: the manifest of the token folder trained on."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda = torch.device(device).type == "cuda"
    return {
        "git": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "data": {name: facts["sha256"] for name, facts in data_manifest["files"].items()},
    }


# ----------------------------------------------------------------------------------------------
# writing


def start_run(out_dir, model_config, settings, tokenizer, environment):
    """Make the run folder and write what does not change during the run."""
    out = Path(out_dir)
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    model_settings = dataclasses.asdict(model_config)
    write_json(
        out / "config.json", {"model": model_settings, "train": dataclasses.asdict(settings)}
    )
    write_json(out / "env.json", environment)


def optimizer_tensors(model, optimizers):
    """The optimizers' state as {"<parameter>/<state>": tensor}, ready for safetensors."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(model, optimizers, tensors):
    """Put back what `optimizer_tensors` returned; a moment lives where its parameter does."""
    for optimizer in optimizers:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in mine:
                keys = [key for key in tensors if key.rpartition("/")[0] == name]
                optimizer.state[parameter] = {
                    key.rpartition("/")[2]: tensors[key].to(parameter.device) for key in keys
                }


def save(out_dir, model, optimizers, state, best):
    """
    Write checkpoints/<state["step"]>, point `latest` at it (and `best`, if `best`), drop the rest.

    state: a JSON-able dict with at least "step".
    """
    folder = Path(out_dir) / "checkpoints"
    final, part = folder / str(state["step"]), folder / f"{state['step']}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, part / "model.safetensors")
        save_file(optimizer_tensors(model, optimizers), part / "state.safetensors")
        hashes = {f"{name}.safetensors": sha256(part / f"{name}.safetensors") for name in _FILES}
        write_json(part / "state.json", {**state, "sha256": hashes})
        for path in [*part.iterdir(), part]:
            _flush(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if final.exists():  # the same step again: a run that stopped right after saving
        shutil.rmtree(final)
    part.rename(final)
    for name in ("latest", "best") if best else ("latest",):
        link = Path(out_dir) / name
        _point(link, Path("checkpoints") / final.name)
    kept = {(Path(out_dir) / name).resolve() for name in ("latest", "best")}
    for old in folder.iterdir():
        if old.resolve() not in kept:
            shutil.rmtree(old)


_FILES = ("model", "state")


def _flush(path):
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link, target):
    """Make the symlink `link` point to `target` in one step."""
    part = Path(f"{link}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    os.replace(part, link)


# ----------------------------------------------------------------------------------------------
# reading


def newest_run(folder="out"):
    """The run under `folder` whose checkpoint is newest; raises UserError if there is none."""
    runs = [link.parent for link in Path(folder).glob("*/latest") if link.exists()]
    if not runs:
        raise UserError(f"no trained run in '{folder}/'; train one first: make story")
    return str(max(runs, key=lambda run: (run / "latest" / "state.json").stat().st_mtime))


def read_config(out_dir):
    """A run's config.json; raises UserError if it is not there or not readable."""
    path = Path(out_dir) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no run in '{out_dir}' (no config.json)") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_state(out_dir, which="latest"):
    """(state, optimizer tensors) of a checkpoint: "latest", "best", or "checkpoints/<step>"."""
    folder = Path(out_dir) / which
    if not (folder / "state.json").is_file():
        raise UserError(f"no checkpoint in '{out_dir}'; the run has not saved one yet")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state, read_tensors(folder / "state.safetensors")


def read_tensors(path):
    """The tensors of a safetensors file, on the CPU; raises UserError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def load_model(out_dir, which="latest", device="cpu", **changes):
    """
    The model of a run, in eval mode on `device`, and its tokenizer: (GPT, Tokenizer).

    which: "latest", "best" or "checkpoints/<step>". changes: of the stored GPTConfig, such as
    dropout. Raises UserError if anything is missing or
    does not fit together.
    """
    config = read_config(out_dir)
    path = Path(out_dir) / which / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no checkpoint in '{out_dir}'; the run has not saved one yet")
    tokenizer = Tokenizer.load(Path(out_dir) / "tokenizer.json")
    try:
        model = GPT(GPTConfig(**config["model"] | changes))
        model.load_state_dict(read_tensors(path))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not fit {out_dir}/config.json: {error}") from None
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{out_dir}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model {model.config.vocab_size}"
        )
    return model.to(device).eval(), tokenizer
