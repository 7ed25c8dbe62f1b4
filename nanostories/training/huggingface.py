"""Published models: GPT-2 and GPT-Neo as transformers stores them, read and written.

    loaded = load("gpt2")                            # also gpt2-medium, gpt2-large, gpt2-xl
    loaded = load("roneneldan/TinyStories-33M")      # any GPT-2 or GPT-Neo on the hub
    loaded = load("some/folder", block_size=256)     # or on this disk

A model is a folder with a config.json, weights (safetensors; an old pytorch_model.bin is read
without running what it may hold) and a tokenizer. It is downloaded from the hub once; after that it
is read from the hub's cache, also without a network (HF_HOME says where that is).

Both architectures have the same parameters as model.py, under other names:

    model.py             GPT-2, transposed where *       GPT-Neo
    wte wpe ln_f ln_1 ln_2, mlp.c_fc*, mlp.c_proj*       the same names
    attn.c_attn          attn.c_attn*                    attn.attention.q_proj, k_proj, v_proj
    attn.c_proj          attn.c_proj*                    attn.attention.out_proj

GPT-Neo attends without dividing by sqrt(D), has no biases in q, k and v, and every second of its
layers attends to the last 256 tokens only.
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
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import Tokenizer, build
from nanostories.storage import read_json, sha256
from nanostories.training.distributed import rank

GPT2_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
SMALL_FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"
]  # fmt: skip
MASKS = ("attn.bias", "attention.bias", "masked_bias")  # in old files, beside the parameters
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")  # the first that there are
# The authors trained TinyStories-* on so many; their config.json still declares GPT-Neo's 2,048.
TINYSTORIES_POSITIONS = 512


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
        raise UserError(f"'{name}' {why}") from None
    return folder


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---- config.json -------------------------------------------------------------------------------

# The fields of GPTConfig, as the config.json of each architecture calls them.
FIELDS = {
    "gpt2": {
        "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer",
        "n_head": "n_head", "n_embd": "n_embd",
    },
    "gpt_neo": {
        "vocab_size": "vocab_size", "block_size": "max_position_embeddings",
        "n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size",
    },
}  # fmt: skip


def _fixed_settings(model_type, n_embd):
    """{setting of config.json: the values that mean what model.py does}; the first is written."""
    width_of_mlp = "intermediate_size" if model_type == "gpt_neo" else "n_inner"
    fixed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "tie_word_embeddings": (True,),
        width_of_mlp: (None, 4 * n_embd),
    }
    if model_type == "gpt2":
        fixed |= {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}
    return fixed


def read_model_config(folder, name=""):
    """(GPTConfig, the number of positions that training used) of a model's config.json.

    name: what the user calls the model. Raises UserError naming a setting that model.py lacks."""
    path, name = Path(folder) / "config.json", name or folder
    stored = read_json(path)
    try:
        model_type = stored.get("model_type")
        if model_type not in FIELDS:
            raise UserError(f"'{name}' is a {model_type}; only gpt2 and gpt_neo can be read")
        shape = {field: stored[key] for field, key in FIELDS[model_type].items()}
        if model_type == "gpt2":
            config = GPTConfig(**shape, scale_attention=stored.get("scale_attn_weights", True))
        else:
            window = _read_window(stored)
            config = GPTConfig(**shape, window=window, scale_attention=False, qkv_bias=False)
        fixed = _fixed_settings(model_type, config.n_embd)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    for key, values in fixed.items():
        if stored.get(key, values[0]) not in values:
            raise UserError(f"'{name}' has {key} {stored[key]!r}; model.py has {values[0]!r}")
    names = Path(name).name, Path(stored.get("_name_or_path", "")).name
    if model_type == "gpt_neo" and any(part.startswith("TinyStories") for part in names):
        return config, min(config.block_size, TINYSTORIES_POSITIONS)
    return config, config.block_size


def _read_window(stored):
    """The attention window of a GPT-Neo's odd layers; 0 if all its layers are global."""
    kinds = stored.get("attention_layers") or [
        kind for kinds, repeats in stored["attention_types"] for kind in kinds * repeats
    ]
    local = "local" in kinds
    if kinds != [("global", "local")[i % 2 and local] for i in range(len(kinds))]:
        raise UserError(f"its attention_layers {kinds} do not alternate from global to local")
    return stored.get("window_size", 256) if local else 0


def hub_config(config):
    """The config.json of a GPTConfig; raises UserError if neither architecture can express it."""
    neo = not config.scale_attention and not config.qkv_bias
    if config.window and not neo:
        raise UserError(
            "neither GPT-2 nor GPT-Neo has both a window and scaled attention or biases of q, k, v"
        )
    model_type, eot = "gpt_neo" if neo else "gpt2", config.vocab_size - 1
    stored = {key: getattr(config, field) for field, key in FIELDS[model_type].items()}
    stored |= {key: values[0] for key, values in _fixed_settings(model_type, config.n_embd).items()}
    stored |= {"model_type": model_type, "dtype": "float32"}
    stored |= {"bos_token_id": eot, "eos_token_id": eot}
    if neo:
        pairs, odd = divmod(config.n_layer, 2)
        pair = ["global", "local" if config.window else "global"]
        return stored | {
            "architectures": ["GPTNeoForCausalLM"],
            "window_size": config.window or 256,
            "attention_types": [[pair, pairs]] * bool(pairs) + [[["global"], 1]] * odd,
        }
    return stored | {
        "architectures": ["GPT2LMHeadModel"],
        "n_ctx": config.block_size,
        "scale_attn_weights": config.scale_attention,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


# ---- weights -----------------------------------------------------------------------------------


def _hub_names(name, neo):
    """The hub's names of a parameter of model.py; three for GPT-Neo's q, k and v."""
    if neo and "attn.c_attn" in name:
        return [name.replace("attn.c_attn", f"attn.attention.{part}_proj") for part in "qkv"]
    return [name.replace("attn.c_proj", "attn.attention.out_proj") if neo else name]


def _is_transposed(name, neo):
    """Whether GPT-2 stores this weight transposed: its linear layers began as convolutions."""
    return not neo and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def from_hub_tensors(tensors, config):
    """{name: float32 tensor} for GPT(config), from the tensors of either architecture.

    Raises UserError where they are no such model's, KeyError for a missing tensor."""
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    head, wte = tensors.pop("lm_head.weight", None), tensors["wte.weight"]
    if head is not None and not torch.equal(head, wte):
        raise UserError("its output head is not its token embedding, as model.py has it")
    if len(wte) != config.vocab_size:
        raise UserError(f"it embeds {len(wte)} tokens; its vocab_size is {config.vocab_size}")
    neo, state = "h.0.attn.c_attn.weight" not in tensors, {}
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items()}
    used = {part for name in shapes for part in _hub_names(name, neo)}
    for name in tensors.keys() - used:
        if name.startswith("h.") and not name.endswith(MASKS):
            raise UserError(f"its weights hold {name}, which its config.json has no place for")
    for name, shape in shapes.items():
        x = torch.cat([tensors[part].float() for part in _hub_names(name, neo)])
        if name == "wte.weight":  # model.py's rows of padding: no token id selects them
            x = torch.cat([x, x.new_zeros(shape[0] - len(x), shape[1])])
        elif name == "wpe.weight":
            x = x[: shape[0]]
        state[name] = (x.t() if _is_transposed(name, neo) else x).contiguous()
    return state


def to_hub_tensors(state, config):
    """The tensors of a GPT(config), {name: tensor}, in the layout that `hub_config` names."""
    neo, tensors = hub_config(config)["model_type"] == "gpt_neo", {}
    for name, x in state.items():
        x = x[: config.vocab_size] if name == "wte.weight" else x
        x = x.t() if _is_transposed(name, neo) else x
        names = _hub_names(name, neo)
        tensors |= zip(names, x.chunk(len(names)), strict=True)
    if not neo and not config.qkv_bias:
        names = [f"h.{i}.attn.c_attn.bias" for i in range(config.n_layer)]
        tensors |= {name: torch.zeros(3 * config.n_embd) for name in names}
    return {f"transformer.{name}": x.contiguous() for name, x in tensors.items()}


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
        with torch.device("meta"):
            model = GPT(config)
        model.load_state_dict(from_hub_tensors(read_tensors(weight_files), config), assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        why = _first_line(error)
        raise UserError(f"the weights in '{folder}' do not fit its config.json: {why}") from None
    return LoadedModel(
        model.to(device).eval(),
        tokenizer,
        max_length=block_size,
        bos_ids=[tokenizer.eot] if _begins_with_eot(folder) else [],
        out_dir=results_folder(name),
        provenance={"model": str(name), "folder": folder.name},  # in the hub's cache: the commit
        weight_files=weight_files,
    )


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
