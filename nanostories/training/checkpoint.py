"""Run folders: everything one training run leaves behind, and how it is read back.

    out/<run>/
        config.json       the architecture ("model") and every setting of the script ("train")
        tokenizer.json    the tokenizer the model was trained with; config.json has its sha256
        env.json          git commit, versions, device, hash of the data
        metrics.jsonl     one line for each log and each evaluation; loss.png, samples.txt
        checkpoints/<step>/   model.safetensors, state.safetensors (optimizer), state.json,
                              SHA256SUMS of the three, which `sha256sum -c` checks too
        latest, best      symlinks into checkpoints/; where there are none, files with the step

A checkpoint is written under a temporary name, flushed to the disk and renamed; only then are the
symlinks swapped. So whenever a run is killed, a folder named by a step is complete, and `prune`
restores the rest from the newest state.json. Every file is compared with its sha256 before it is
read. Tensors are safetensors, everything else is JSON: nothing is ever unpickled.
"""

import contextlib
import dataclasses
import errno
import math
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configs import UserError, explained
from model import GPT, GPTConfig, WithoutWeights
from nanostories.dataset.shards import read_manifest
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.storage import atomic_file, atomic_folder, read_json, sha256, write_json
from nanostories.training import huggingface
from nanostories.training.distributed import rank
from nanostories.training.huggingface import LoadedModel

CHECKPOINT_FILES = ("model.safetensors", "state.safetensors", "state.json")
RUN_FILES = ("config.json", "tokenizer.json", "env.json", "metrics.jsonl", "loss.png",
             "monitor.png", "reference.json", "samples.txt", "latest", "best")  # fmt: skip


# ---- writing -----------------------------------------------------------------------------------


def data_hashes(data_manifest):
    """{file name: sha256} of a token folder, from its manifest.json."""
    return {name: entry["sha256"] for name, entry in data_manifest["files"].items()}


def create_run_folder(out_dir, model_config, settings, tokenizer, environment):
    """Make the run folder and write the files that do not change during the run."""
    out = Path(out_dir)
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "tokenizer.json") as part:
        tokenizer.save(part)
    config = {"model": dataclasses.asdict(model_config), "train": dataclasses.asdict(settings)}
    config["files"] = {"tokenizer.json": {"sha256": sha256(out / "tokenizer.json")}}
    write_json(out / "config.json", config)
    write_json(out / "env.json", environment)


def optimizer_state_dict(model, optimizers):
    """The optimizers' state as {"<parameter>/<state>": tensor}."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model, optimizers, optimizer_state):
    """Put back what `optimizer_state_dict` returned, each tensor on its parameter's device."""
    states = {
        parameter: optimizer.state
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key, value in optimizer_state.items():
        name, _, state_name = key.rpartition("/")
        parameter = model.get_parameter(name)
        states[parameter][parameter][state_name] = value.to(parameter.device)


class CheckpointSaver(contextlib.AbstractContextManager):
    """Saves the checkpoints of a run in a thread, one at a time.

    `save` copies the tensors to host memory, which stays for the next save; the thread writes them.
    A `with` block waits for the last save; a FloatingPointError in it, of nan or infinity in this
    run, becomes a UserError that says what is saved."""

    def __init__(self, out_dir):
        self.out_dir, self.copies = out_dir, {}
        self.thread, self.saving = ThreadPoolExecutor(1), None

    def __exit__(self, kind, error, traceback):
        self.wait()
        if kind is FloatingPointError:
            steps = steps_of(self.out_dir)
            saved = f"step {steps[-1]} is saved, no later one" if steps else "no step is saved"
            line = f"{error}; in '{self.out_dir}' {saved}. A lower learning_rate may help"
            raise UserError(line) from None

    def save(self, model, optimizers, state):
        """Wait for the last save, then start `write_checkpoint`, unless a tensor is not finite."""
        self.wait()
        tensors = (model.state_dict(), optimizer_state_dict(model, optimizers))
        present = [x for part in tensors for x in part.values() if x.numel()]
        # The largest magnitude: one pass on the device, one number to the host; nan is never lost.
        if not torch.nn.utils.get_total_norm(present, math.inf).isfinite():
            raise FloatingPointError(f"step {state['step']}: a weight or moment is nan or inf")
        if rank():
            return  # all ranks check, so that all stop together; the first one saves
        copies = [{name: self._copy(x, name) for name, x in part.items()} for part in tensors]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.saving = self.thread.submit(write_checkpoint, self.out_dir, *copies, dict(state))

    def _copy(self, tensor, name):
        if name not in self.copies:  # pinned memory takes a GPU's copy without waiting
            self.copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return self.copies[name].copy_(tensor, non_blocking=tensor.is_cuda)

    def wait(self):
        """Return when the last save is on the disk; raises OSError or SafetensorError if not."""
        saving, self.saving = self.saving, None
        if saving:
            saving.result()


def write_checkpoint(out_dir, weights, optimizer_state, state):
    """Write checkpoints/<state["step"]> and point the symlinks at it.

    weights, optimizer_state: {name: tensor on the CPU}; optimizer_state None: the checkpoint cannot
    be resumed. state: a JSON-able dict with "step", "best_step" (the best checkpoint so far) and
    "kept_steps" (steps whose checkpoints `prune` never removes). If it fails, the older checkpoints
    are untouched."""
    folder = Path(out_dir) / "checkpoints" / str(state["step"])
    # The folder may be there, from before the step's evaluation: then only the state is new.
    with atomic_folder(folder, part=f"{folder}.part") as part:
        save_file(weights, part / "model.safetensors")
        if optimizer_state is not None:
            save_file(optimizer_state, part / "state.safetensors")
        write_json(part / "state.json", state)
        files = sorted(part.iterdir())
        (part / "SHA256SUMS").write_text("".join(f"{sha256(f)}  {f.name}\n" for f in files))
    prune(out_dir)


@contextlib.contextmanager
def full_disk_explained(out_dir):
    """Turn an error of the block for want of disk space into a UserError with what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        match = re.search(r"os error (\d+)", str(error))  # safetensors' own errors carry no errno
        number = int(match[1]) if match else getattr(error, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if isinstance(error, OSError):
                raise
            raise UserError(f"'{out_dir}' cannot be written: {error}") from error
        what, then = "is no checkpoint yet", "run the command again"
        if steps := steps_of(out_dir):
            what, then = f"the checkpoint of step {steps[-1]} stands", "--resume"
        line = f"the disk is full ({error}); in '{out_dir}' {what}: free some space, then {then}"
        raise UserError(line) from error


def steps_of(out_dir):
    """The steps of the complete checkpoints in a run folder, ascending."""
    folders = Path(out_dir).glob("checkpoints/*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def prune(out_dir):
    """Point `latest` at the newest complete checkpoint and `best` at the best it knows of; remove
    the others, but for the one before the newest and those kept, and what is half-written."""
    out = Path(out_dir)
    if steps := steps_of(out_dir):
        state = read_json(verified_path(out / "checkpoints" / str(steps[-1]), "state.json"))
        for name, step in (("latest", steps[-1]), ("best", state["best_step"])):
            if step in steps:
                _point(out / name, step)
        for step in {*steps[:-2]} - {state["best_step"], *state["kept_steps"]}:
            old = out / "checkpoints" / str(step)
            old.rename(f"{old}.part")  # first: a folder named by a step is always complete
    for part in out.glob("checkpoints/*.part"):
        shutil.rmtree(part, ignore_errors=True)  # NFS keeps what somebody reads: next time


def recover(out_dir):
    """`prune`, and remove what a killed run left half-written in the run folder itself."""
    for old in Path(out_dir).glob("checkpoints/.*.old"):  # killed before the new one was in place
        if not (folder := old.with_name(old.name.split(".")[1])).exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    prune(out_dir)
    for part in (part for name in RUN_FILES for part in Path(out_dir).glob(f"{name}*.part")):
        part.unlink()


def _point(link, step):
    """Point a symlink at the checkpoint of a step, in one atomic rename. Where the file system has
    no symlinks (exFAT, Google Drive), a text file with the step takes its place."""
    part = Path(f"{link}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(Path("checkpoints") / str(step))
    except OSError:
        part.write_text(f"{step}\n")
    if link.is_dir() and not link.is_symlink():  # of a run that was copied with its links followed
        shutil.rmtree(link)
    os.replace(part, link)


# ---- reading -----------------------------------------------------------------------------------


def read_config(out_dir):
    """A run's config.json, {"model": ..., "train": ...}; UserError if it is no such file."""
    path = Path(out_dir) / "config.json"
    config = read_json(path, missing=f"no run in '{out_dir}' (no config.json)")
    parts = [config.get(x, {}) for x in ("model", "train")] if isinstance(config, dict) else []
    if not any(parts) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path} was not written by this version of train.py")
    return config


def data_folder(run, setting="dataset"):
    """The data folder that a run was trained on. run: its folder, or a LoadedModel.

    Raises UserError where it is gone or now holds other data, and for a published model: the user
    can name data with `setting` instead."""
    if isinstance(run, LoadedModel) and not run.is_run():
        name = run.provenance["model"]
        raise UserError(f"'{name}' has no data of its own: name some with --{setting}")
    out_dir = getattr(run, "out_dir", run)
    folder = read_config(out_dir)["train"]["dataset"]
    if not Path(folder, "manifest.json").exists():
        advice = f"prepare it again, or name data with --{setting}"
        raise UserError(f"'{folder}', which '{out_dir}' was trained on, is not here: {advice}")
    read_state_of_data(out_dir, folder, f"name data with --{setting}")
    return folder


def read_state_of_data(out_dir, folder, advice="start a new run with --init_from"):
    """`read_state`; or UserError where a data folder is not what the run was trained on."""
    state = read_state(out_dir)
    before = now = state.get("eval_data") or state.get("data") or {}  # {}: a published model's
    if before and Path(folder, "manifest.json").exists():  # else who opens it says what is missing
        now = data_hashes(read_manifest(folder))
    changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    if changed:
        what = "another tokenizer" if "tokenizer.json" in changed else "other data"
        raise UserError(
            f"'{folder}' holds {what} than '{out_dir}' was trained on: {', '.join(changed)} "
            f"differ; prepare the same again, or {advice}"
        )
    return state


def resolve_checkpoint(out_dir, which="latest"):
    """The folder of a checkpoint: "latest", "best", or "checkpoints/<step>"; UserError if none."""
    folder = Path(out_dir) / which
    if which in ("latest", "best") and folder.is_file():  # in place of a symlink; Git writes paths
        step = folder.read_text(errors="replace").rpartition("/")[2].strip()
        folder = Path(out_dir) / "checkpoints" / (step or which)
    if not folder.is_dir() and which == "latest" and (steps := steps_of(out_dir)):  # lost in a copy
        folder = Path(out_dir) / "checkpoints" / str(steps[-1])
    # Another folder is not called a damaged checkpoint, since the advice is to remove it.
    if not any((folder / name).is_file() for name in (*CHECKPOINT_FILES, "SHA256SUMS")):
        names = ", ".join(f"checkpoints/{step}" for step in steps_of(out_dir))
        saved = f"it has {names}" if names else "the run has not saved one yet"
        raise UserError(f"no checkpoint '{which}' in '{out_dir}'; {saved}")
    return folder.resolve()


def verified_path(folder, name):
    """The path of a checkpoint's file; raises UserError unless its sha256 is in SHA256SUMS."""
    path, problem = folder / name, "its sha256 is another one"
    try:
        if sha256(path) == _read_sums(folder)[name]:
            return path
    except (FileNotFoundError, ValueError, KeyError) as error:  # another OSError proves no damage
        problem = error
    advice = "remove that folder, and --resume takes the newest of the others"
    raise UserError(f"{path} is damaged, by SHA256SUMS ({problem}): {advice}")


def _read_sums(folder):
    """{name: sha256}"""
    return dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())


def read_tensors(folder, name):
    """A checkpoint's tensors, on the CPU, verified; raises UserError if they cannot be read."""
    path = verified_path(folder, name)
    with explained(f"{path} is no safetensors file: ", OSError, SafetensorError):
        return load_file(path)


def read_state(out_dir, which="latest"):
    """The `state` that `write_checkpoint` got, of the checkpoint `which`; or UserError."""
    return read_json(verified_path(resolve_checkpoint(out_dir, which), "state.json"))


def read_optimizer_state(out_dir, which="latest"):
    """A checkpoint's optimizer state, for `load_optimizer_state`; or UserError."""
    folder, name = resolve_checkpoint(out_dir, which), "state.safetensors"
    verified_path(folder, "state.json")  # so the sums can be read
    if not (folder / name).exists() and name not in _read_sums(folder):
        line = f"'{out_dir}' was exported without the optimizer's state, which --resume needs: "
        raise UserError(line + "--init_from starts another run from its weights")
    return read_tensors(folder, name)


def load_model(name, which="latest", device="cpu", revision="", **changes):
    """The LoadedModel of a run folder (`load_run`) or of a published model (`huggingface.load`)."""
    if is_run_folder(name):
        return load_run(name, which, device, **changes)
    return huggingface.load(name, device, revision, **changes)


def is_run_folder(name):
    """Whether `name` is a run folder, rather than a published model or a folder with one."""
    return (Path(name) / "config.json").exists() and not huggingface.is_published_folder(name)


def load_run(out_dir, which="latest", device="cpu", **changes):
    """The LoadedModel of a run folder: its model in eval mode on `device`.

    which: see `resolve_checkpoint`. changes: to the stored GPTConfig, such as dropout; a smaller
    block_size cuts positions off. Raises UserError for what is missing, damaged or does not fit."""
    config, folder = read_config(out_dir)["model"], resolve_checkpoint(out_dir, which)
    state = read_json(verified_path(folder, "state.json"))
    defaults = dataclasses.asdict(GPTConfig())  # for settings that are younger than the run
    config, saved = defaults | config, defaults | state.get("model", {})
    for name, value in config.items():
        if value != saved.get(name):
            raise UserError(
                f"{out_dir}/config.json is not what {folder} has: {name} is {value}, "
                f"not {saved.get(name)}"
            )
    tokenizer = Tokenizer.load(Path(out_dir) / "tokenizer.json")
    weights = read_tensors(folder, "model.safetensors")
    misfits = RuntimeError, TypeError, ValueError, KeyError
    with explained(f"{folder} does not fit {out_dir}/config.json: ", *misfits):
        with WithoutWeights():
            model = GPT(GPTConfig(**config | changes))
        if model.wpe is not None:
            weights["wpe.weight"] = weights["wpe.weight"][: model.config.block_size].clone()
        # Assigned, not copied: new parameters on the meta device would take 0.3 s to become real.
        weights = {name: weight.to(device, torch.float32) for name, weight in weights.items()}
        model.load_state_dict(weights, assign=True)
        max_length = min(state["max_length"], model.config.block_size)
    if (size := tokenizer.vocab_size) != config["vocab_size"]:
        raise UserError(f"{out_dir}: the tokenizer has {size} tokens, not {config['vocab_size']}")
    provenance = {"step": state["step"], "sha256": _read_sums(folder)["model.safetensors"]}
    return LoadedModel(model.eval(), tokenizer, max_length=max_length, bos_ids=[tokenizer.eot],
                       out_dir=str(out_dir), provenance=provenance)  # fmt: skip
