"""Published models: GPT-2, GPT-Neo and GPT-NeoX as transformers stores them, read and written.

    loaded = load("gpt2")                            # also gpt2-medium, gpt2-large, gpt2-xl
    loaded = load("roneneldan/TinyStories-33M")      # any GPT-2, GPT-Neo or GPT-NeoX
    loaded = load("some/folder", block_size=256)     # or on this disk

A model is a folder with a config.json, weights (safetensors; an old pytorch_model.bin is read
without running what it may hold) and a tokenizer. It is downloaded from the hub once; after that it
is read from the hub's cache, also without a network (HF_HOME says where that is).
"""

import pickle
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from configs import UserError
from model import GPT, WithoutWeights
from nanostories.dataset.tokenizer import Tokenizer, build
from nanostories.storage import read_json, sha256
from nanostories.training.distributed import rank
from nanostories.training.hub_layouts import from_hub_tensors, read_model_config

GPT2_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
SMALL_FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"
]  # fmt: skip
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")  # the first that there are


@dataclass
class LoadedModel:
    """A model, trained here or published, with what generating and training further need."""

    model: GPT  # in eval mode
    tokenizer: Tokenizer
    max_length: int  # tokens of the longest story in training: generation stops there
    bos_ids: list  # the token ids before every prompt: [<|endoftext|>], or [] if trained without
    out_dir: str  # the folder that results about it go to
    provenance: dict  # of a run: step, sha256; of a published model: model (its name), folder
    weight_files: tuple = ()  # of a published model

    def __post_init__(self):
        """Raise UserError where a weight is nan or inf."""
        for name, x in self.model.state_dict().items():
            # Only the extremes: 30 times as fast as isfinite of every weight.
            if not torch.stack(x.aminmax()).isfinite().all():
                damaged = f"the weights of {self.provenance} for {self.out_dir} are damaged"
                raise UserError(f"{damaged}: {name} holds nan or inf; take another checkpoint")

    def is_run(self):
        """Whether it was trained here: then out_dir is its run folder."""
        return "step" in self.provenance

    def identity(self):
        """What result files record of the model: its provenance and the sha256 of its weights."""
        return self.provenance | {path.name: sha256(path) for path in self.weight_files}

    def encode_prompt(self, text):
        """The token ids of a prompt, never empty: at least <|endoftext|>."""
        ids = self.bos_ids + self.tokenizer.encode_prompt(text)
        return ids or [self.tokenizer.eot]


def is_published_folder(path):
    """Whether a folder holds a model as transformers writes it."""
    try:
        return "model_type" in read_json(Path(path) / "config.json")
    except UserError:
        return False


def resolve_model(name, revision=""):
    """The folder of a model: itself, or one in the hub's cache, downloaded if it is not there yet.

    revision: a branch, tag or commit of the hub's repository. Raises UserError if there is none."""
    if Path(name).is_dir():
        if is_published_folder(name):
            return Path(name)
        raise UserError(f"'{name}' holds no model: neither a run nor what transformers saves")
    from huggingface_hub import snapshot_download  # a second to import

    repository = f"openai-community/{name}" if name in GPT2_SIZES else name
    try:
        for weights in WEIGHT_FILES:
            patterns = [*SMALL_FILES, f"{weights}*"]  # with the index of several files
            request = {"revision": revision or None, "allow_patterns": patterns}
            folder = Path(snapshot_download(repository, **request))
            if list(folder.glob(weights)):
                break
    except Exception as error:  # the client's errors and its HTTP library's have no common base
        why = f"is no folder here and cannot be had from the hub: {_first_line(error)}"
        raise UserError(f"'{name}' {why}; a run or a downloaded folder needs no network") from None
    return folder


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_tensors(files):
    """All tensors of weight files; raises UserError if they are damaged."""
    tensors = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                tensors |= load_file(path)
            else:
                tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} cannot be read: {_first_line(error)}") from None
    return tensors


# ---- a whole model -----------------------------------------------------------------------------


def load(name, device="cpu", revision="", block_size=0, dropout=0.0):
    """A published model as a LoadedModel: its model in eval mode on `device`.

    name, revision: see `resolve_model`. block_size: positions to keep; default: those that training
    used. Raises UserError if anything is missing, damaged, or unlike model.py."""
    folder = resolve_model(name, revision)
    config, trained = read_model_config(folder, name)
    if trained < config.block_size and rank() == 0:
        positions = f"of {config.block_size:,} positions {trained} were trained"
        print(f"{name}: {positions}; the rest is cut", file=sys.stderr)
    block_size = min(block_size or trained, config.block_size)
    config = replace(config, block_size=block_size, dropout=dropout)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    safetensors, old_files = (sorted(folder.glob(pattern)) for pattern in WEIGHT_FILES)
    if not (weight_files := safetensors or old_files):
        raise UserError(f"no model.safetensors in '{folder}', nor a pytorch_model.bin")
    try:
        with WithoutWeights():
            model = GPT(config)
        model.load_state_dict(from_hub_tensors(read_tensors(weight_files), config), assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        why = _first_line(error)
        raise UserError(f"the weights in '{folder}' do not fit its config.json: {why}") from None
    provenance = {"model": str(name), "folder": folder.name}  # in the hub's cache: the commit
    bos_ids = [tokenizer.eot] if _begins_with_eot(folder) else []
    return LoadedModel(model.to(device).eval(), tokenizer, max_length=block_size, bos_ids=bos_ids,
                       out_dir=results_folder(name), provenance=provenance,
                       weight_files=weight_files)  # fmt: skip


def results_folder(name):
    """The folder for results about a published model."""
    return "out/published/" + re.sub(r"\W+", "-", str(name)).strip("-")


def load_tokenizer(folder, vocab_size):
    """The Tokenizer in a model's folder; GPT-2's own if there is none."""
    own = any((folder / name).exists() for name in ("tokenizer.json", "vocab.json"))
    tokenizer = Tokenizer.load(folder) if own else build("gpt2")
    if (size := tokenizer.vocab_size) != vocab_size:
        raise UserError(f"'{folder}': the tokenizer has {size} tokens, the model {vocab_size}")
    return tokenizer


def _begins_with_eot(folder):
    """Whether the tokenizer puts <|endoftext|> before a text, so that the model expects it."""
    path = folder / "tokenizer.json"
    processor = (read_json(path).get("post_processor") or {}) if path.exists() else {}
    return processor.get("type") == "TemplateProcessing"
