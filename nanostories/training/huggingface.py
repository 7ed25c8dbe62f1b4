"""
Published models: GPT-2 and GPT-Neo as transformers stores them, and the way there and back.

    found = load("gpt2")                             # also gpt2-medium, gpt2-large, gpt2-xl
    found = load("roneneldan/TinyStories-33M")       # any GPT-2 or GPT-Neo on the hub
    found = load("some/folder", block_size=256)      # or on this disk

A model is a folder with a config.json, weights (safetensors; an old pytorch_model.bin is read
without running what it may hold) and a tokenizer. From the hub it is downloaded once and then found
in the hub's cache, also without a network (HF_HOME says where that is).

The two layouts hold the same numbers as model.py under other names:

    ours                 GPT-2, transposed where *       GPT-Neo
    wte wpe ln_f ln_1 ln_2, mlp.c_fc*, mlp.c_proj*       the same names
    attn.c_attn          attn.c_attn*                    attn.attention.q_proj, k_proj, v_proj
    attn.c_proj          attn.c_proj*                    attn.attention.out_proj

GPT-Neo attends without dividing by sqrt(D), has no biases in q, k and v, and every second of its
layers sees only the last 256 tokens.
"""

import json
import pickle
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from configs import UserError
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import Tokenizer, build
from nanostories.storage import sha256
from nanostories.training.distributed import rank

GPT2_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
FACTS = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
# The authors trained these on 512 tokens; their config.json still declares GPT-Neo's 2,048.
TRAINED_ON = {"TinyStories": 512}


@dataclass
class LoadedModel:
    """A model to generate stories with, or to train further."""

    model: GPT  # in eval mode
    tokenizer: Tokenizer
    max_length: int  # tokens of the longest story in training: generation stops there
    bos_ids: list  # the token ids before every prompt: [<|endoftext|>], or [] if trained without
    out_dir: str  # the folder that results about it go to
    provenance: dict  # of a run: step, sha256; of a published model: model (its name), folder
    weight_files: tuple = ()  # of a published model

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


# ----------------------------------------------------------------------------------------------
# finding it


def is_published_folder(path):
    """Whether a folder holds a model as transformers writes it."""
    try:
        return "model_type" in json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def resolve_model(name, revision=""):
    """
    The folder of a model: itself, or the hub's cache, downloaded where it is not there yet.

    revision: a branch, tag or commit of the hub's repository. Raises UserError where there is none.
    """
    if Path(name).is_dir():
        if is_published_folder(name):
            return Path(name)
        raise UserError(f"'{name}' holds no model: neither a run nor what transformers saves")
    from huggingface_hub import snapshot_download  # a second to import

    repository = f"openai-community/{name}" if name in GPT2_SIZES else name
    where = {"repo_id": repository, "revision": revision or None}
    try:
        folder = snapshot_download(**where, allow_patterns=[*FACTS, "model*.safetensors*"])
        if not list(Path(folder).glob("model*.safetensors")):
            folder = snapshot_download(**where, allow_patterns=[*FACTS, "pytorch_model*.bin*"])
    except Exception as error:  # the client's errors, and its own client's, have no common base
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"'{name}' is no folder here and cannot be had from the hub: {why}"
        ) from None
    return Path(folder)


# ----------------------------------------------------------------------------------------------
# config.json


def read_model_config(folder, name=""):
    """
    (GPTConfig, trained) of a model's config.json; trained: the positions that training used.

    name: what the user calls it. Raises UserError for an architecture that model.py does not have,
    naming what differs.
    """
    path = Path(folder) / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kind = facts.get("model_type")
        if kind not in ("gpt2", "gpt_neo"):
            raise UserError(f"'{name or folder}' is a {kind}; only gpt2 and gpt_neo can be read")
        config, wanted = (_gpt2 if kind == "gpt2" else _neo)(facts)
    except OSError:
        raise UserError(f"no config.json in '{folder}'") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    wanted |= {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "tie_word_embeddings": (True,),
    }
    for key, values in wanted.items():
        if facts.get(key, values[0]) not in values:
            raise UserError(
                f"'{name or folder}' has {key} {facts[key]!r}; this project's model {values[0]!r}"
            )
    called = Path(name).name, Path(facts.get("_name_or_path", "")).name
    used = [
        tokens
        for begin, tokens in TRAINED_ON.items()
        if kind == "gpt_neo" and any(part.startswith(begin) for part in called)
    ]
    return config, min([config.block_size, *used])


def warn_about_unused_positions(name, config, used):
    """A word about positions that config.json declares and training did not use."""
    if used < config.block_size and rank() == 0:
        word = f"{name}: of {config.block_size:,} positions {used} were trained; the rest is cut"
        print(word, file=sys.stderr)


def _gpt2(facts):
    """(GPTConfig, {setting: values that model.py has}) of a GPT-2's config.json."""
    C = facts["n_embd"]
    config = GPTConfig(
        vocab_size=facts["vocab_size"],
        block_size=facts.get("n_positions", facts.get("n_ctx", 1024)),
        n_layer=facts["n_layer"],
        n_head=facts["n_head"],
        n_embd=C,
        scale_attention=facts.get("scale_attn_weights", True),
    )
    return config, {
        "n_inner": (None, 4 * C),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }


def _neo(facts):
    """The same of a GPT-Neo's."""
    C = facts["hidden_size"]
    kinds = facts.get("attention_layers") or [
        kind for kinds, times in facts["attention_types"] for kind in kinds * times
    ]
    local = "local" in kinds
    if kinds != [("global", "local")[i % 2 and local] for i in range(len(kinds))]:
        raise UserError(f"its attention_layers {kinds} do not alternate from global to local")
    config = GPTConfig(
        vocab_size=facts["vocab_size"],
        block_size=facts["max_position_embeddings"],
        n_layer=facts["num_layers"],
        n_head=facts["num_heads"],
        n_embd=C,
        window=facts.get("window_size", 256) if local else 0,
        scale_attention=False,
        qkv_bias=False,
    )
    return config, {"intermediate_size": (None, 4 * C)}


def hub_config(config):
    """The config.json of a GPTConfig; raises UserError where no layout has room for it."""
    both = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.vocab_size - 1,
        "eos_token_id": config.vocab_size - 1,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if not config.scale_attention and not config.qkv_bias:
        local = "local" if config.window else "global"
        pairs, odd = divmod(config.n_layer, 2)
        types = [[["global", local], pairs]] if pairs else []
        return both | {
            "architectures": ["GPTNeoForCausalLM"],
            "model_type": "gpt_neo",
            "max_position_embeddings": config.block_size,
            "hidden_size": config.n_embd,
            "num_layers": config.n_layer,
            "num_heads": config.n_head,
            "intermediate_size": None,
            "window_size": config.window or 256,
            "attention_types": types + ([[["global"], 1]] if odd else []),
        }
    if config.window:
        raise UserError(
            "neither GPT-2 nor GPT-Neo has both a window and scaled attention or biases of q, k "
            "and v: this model cannot be exported"
        )
    return both | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "scale_attn_weights": config.scale_attention,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


# ----------------------------------------------------------------------------------------------
# weights


def from_hub_tensors(tensors, config):
    """
    {name: float32 tensor} for GPT(config) of the tensors of either layout.

    Raises UserError where a separate output head or a missing tensor does not fit.
    """
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    head = tensors.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise UserError("its output head is not its token embedding, as model.py has it")
    with torch.device("meta"):
        wanted = GPT(config).state_dict()
    state = {}
    for name, shape in ((name, x.shape) for name, x in wanted.items()):
        neo = name.replace("attn.c_proj", "attn.attention.out_proj")
        if name == "wte.weight":  # padding is computed with and never seen: zeros
            x = tensors[name].float()
            if len(x) != config.vocab_size:
                raise UserError(f"it embeds {len(x)} tokens; its vocab_size is {config.vocab_size}")
            x = torch.cat([x, x.new_zeros(shape[0] - len(x), shape[1])])
        elif name in tensors:
            x = tensors[name].float()
            x = x.t() if _conv(name) and "h.0.attn.c_attn.weight" in tensors else x
        elif "attn.c_attn" in name:
            parts = [name.replace("attn.c_attn", f"attn.attention.{p}_proj") for p in "qkv"]
            x = torch.cat([tensors[part].float() for part in parts])
        else:
            x = tensors[neo].float()
        state[name] = x[: shape[0]] if name == "wpe.weight" else x
    return {name: x.contiguous() for name, x in state.items()}


def to_hub_tensors(state, config):
    """The tensors of a GPT(config), {name: tensor}, in the layout that `hub_config` names."""
    neo, tensors = hub_config(config)["model_type"] == "gpt_neo", {}
    for name, x in state.items():
        if name == "wte.weight":
            x = x[: config.vocab_size]
        if not neo:
            tensors[f"transformer.{name}"] = x.t() if _conv(name) else x
        elif "attn.c_attn" in name:
            for part, rows in zip("qkv", x.chunk(3), strict=True):
                part = name.replace("attn.c_attn", f"attn.attention.{part}_proj")
                tensors[f"transformer.{part}"] = rows
        else:
            name = name.replace("attn.c_proj", "attn.attention.out_proj")
            tensors[f"transformer.{name}"] = x
    if not neo and not config.qkv_bias:
        for i in range(config.n_layer):
            bias = torch.zeros(3 * config.n_embd)
            tensors[f"transformer.h.{i}.attn.c_attn.bias"] = bias
    return {name: x.contiguous() for name, x in tensors.items()}


def _conv(name):
    """Whether GPT-2 stores this weight transposed (its layers began as convolutions)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def weight_files(folder):
    """The files of a model's weights: safetensors, or else .bin; UserError if there are none."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError(f"no model.safetensors in '{folder}', nor a pytorch_model.bin")


def read_tensors(folder):
    """All tensors of a model's folder; raises UserError if they are damaged."""
    tensors = {}
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                tensors |= load_file(path)
            else:
                tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} cannot be read: {why}") from None
    return tensors


# ----------------------------------------------------------------------------------------------
# all of it


def load(name, device="cpu", revision="", block_size=0, dropout=0.0):
    """
    A published model as a LoadedModel: its model in eval mode on `device`.

    name, revision: see `resolve_model`. block_size: positions to keep; default: those that training
    used. Raises UserError where anything is missing, damaged, or unlike model.py.
    """
    folder = resolve_model(name, revision)
    config, used = read_model_config(folder, name)
    if not block_size:
        warn_about_unused_positions(name, config, used)
    block_size = min(block_size or used, config.block_size)
    config = replace(config, block_size=block_size, dropout=dropout)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    try:
        state = from_hub_tensors(read_tensors(folder), config)
        with torch.device("meta"):
            model = GPT(config)
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(f"the weights in '{folder}' do not fit its config.json: {why}") from None
    return LoadedModel(
        model.to(device).eval(),
        tokenizer,
        max_length=config.block_size,
        bos_ids=[tokenizer.eot] if _begins_with_eot(folder) else [],
        out_dir=results_folder(name),
        provenance={"model": str(name), "folder": folder.name},  # in the hub's cache: the commit
        weight_files=weight_files(folder),
    )


def results_folder(name):
    """Where results about a published model go."""
    return "out/published/" + re.sub(r"\W+", "-", str(name)).strip("-")


def load_tokenizer(folder, vocab_size):
    """The Tokenizer in a model's folder; GPT-2's own where there is none of that size."""
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = build("gpt2")
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"'{folder}': the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}"
        )
    return tokenizer


def _begins_with_eot(folder):
    """Whether the folder's tokenizer puts <|endoftext|> before a text: so the model was trained."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return False
    processor = json.loads(path.read_text(encoding="utf-8")).get("post_processor") or {}
    return processor.get("type") == "TemplateProcessing"
