"""GPT-2, GPT-Neo and GPT-NeoX as transformers stores them: config.json and the names of tensors.

The architectures have the same parameters as model.py, under other names:

    model.py        GPT-2, transposed where *   GPT-Neo                 GPT-NeoX
    wte wpe         wte wpe                     wte wpe                 embed_in
    ln_f ln_1 ln_2  ln_f ln_1 ln_2              ln_f ln_1 ln_2          final_layer_norm, ...
    attn.c_attn     attn.c_attn*                q_proj, k_proj, v_proj  attention.query_key_value
    attn.c_proj     attn.c_proj*                out_proj                attention.dense
    mlp.c_fc c_proj mlp.c_fc* c_proj*           mlp.c_fc c_proj         mlp.dense_h_to_4h, 4h_to_h

GPT-Neo attends without dividing by sqrt(D), has no biases in q, k and v, and every second of its
layers attends to the last 256 tokens only. GPT-NeoX has rotary positions, and the rows of its
query_key_value are sorted by head first: (H, 3, D) where model.py has (3, H, D).
"""

from pathlib import Path

import torch

from configs import UserError
from model import GPT, GPTConfig, WithoutWeights
from nanostories.storage import read_json

MASKS = ("attn.bias", "attention.bias", "masked_bias")  # in old files, beside the parameters
# The authors trained TinyStories-* on so many; their config.json still declares GPT-Neo's 2,048.
TINYSTORIES_POSITIONS = 512


# ---- config.json -------------------------------------------------------------------------------

# Fields of GPTConfig, and the keys that the config.json of each architecture has for them.
FIELDS = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
KEYS = {
    "gpt2": ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"),
    "gpt_neo": ("vocab_size", "max_position_embeddings", "num_layers", "num_heads", "hidden_size"),
    "gpt_neox": ("vocab_size", "max_position_embeddings", "num_hidden_layers",
                 "num_attention_heads", "hidden_size"),
}  # fmt: skip
# The GELU of model.py and the names that transformers has for it; the first is written.
ACTIVATIONS = {"tanh": ("gelu_new", "gelu_pytorch_tanh"), "erf": ("gelu",)}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}


def _fixed_settings(model_type, config):
    """{setting of config.json: the values that mean what model.py does}; the first is written."""
    inner, names = 4 * config.n_embd, ACTIVATIONS[config.gelu]
    if model_type == "gpt_neox":
        return {
            "hidden_act": names, "layer_norm_eps": (1e-5,), "tie_word_embeddings": (True,),
            "intermediate_size": (inner,), "use_parallel_residual": (False,),
            "attention_bias": (True,), "rope_parameters": (ROPE,),
        }  # fmt: skip
    fixed = {
        "activation_function": names, "layer_norm_epsilon": (1e-5,), "tie_word_embeddings": (True,),
        "intermediate_size" if model_type == "gpt_neo" else "n_inner": (None, inner),
    }  # fmt: skip
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
        if model_type not in KEYS:
            raise UserError(f"'{name}' is a {model_type}; only {', '.join(KEYS)} can be read")
        shape = {field: stored[key] for field, key in zip(FIELDS, KEYS[model_type], strict=True)}
        key = "hidden_act" if model_type == "gpt_neox" else "activation_function"
        shape["gelu"] = "erf" if stored.get(key) in ACTIVATIONS["erf"] else "tanh"
        if model_type == "gpt2":
            config = GPTConfig(**shape, scale_attention=stored.get("scale_attn_weights", True))
        elif model_type == "gpt_neox":
            stored = {"hidden_act": "gelu", "use_parallel_residual": True,
                      "rope_parameters": _read_rope(stored)} | stored  # fmt: skip
            config = GPTConfig(**shape, positions="rope")
        else:
            window = _read_window(stored)
            config = GPTConfig(**shape, window=window, scale_attention=False, qkv_bias=False)
        fixed = _fixed_settings(model_type, config)
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


def _read_rope(stored):
    """A GPT-NeoX's rope_parameters, which configs of before transformers 5 spell otherwise."""
    older = {"rope_theta": stored.get("rotary_emb_base", 10000.0),
             "partial_rotary_factor": stored.get("rotary_pct", 0.25)}  # fmt: skip
    return {"rope_type": "default"} | older | (stored.get("rope_parameters") or {})


def check_exportable(config):
    """Raise UserError for what neither these layouts nor the HTML page have."""
    for name in ("mlp", "tied_head"):
        value, default = getattr(config, name), getattr(GPTConfig, name)
        if value != default:
            raise UserError(f"{name}={value} stays a run folder: only {name}={default} is exported")


def _model_type(config):
    """Which of the architectures a GPTConfig is; raises UserError if none can express it."""
    check_exportable(config)
    neo = not config.scale_attention and not config.qkv_bias
    if config.positions == "rope" and config.scale_attention and config.qkv_bias:
        if not config.window:
            return "gpt_neox"
    elif config.positions == "learned" and (neo or not config.window):
        return "gpt_neo" if neo else "gpt2"
    raise UserError(
        "neither GPT-2 nor GPT-NeoX has a window, nor GPT-Neo scaled attention, biases of q, k and "
        "v, or rotary positions"
    )


def hub_config(config):
    """The config.json of a GPTConfig; raises UserError if no architecture can express it."""
    model_type, eot = _model_type(config), config.vocab_size - 1
    values = (getattr(config, field) for field in FIELDS)
    stored = dict(zip(KEYS[model_type], values, strict=True))
    stored |= {key: values[0] for key, values in _fixed_settings(model_type, config).items()}
    stored |= {"model_type": model_type, "dtype": "float32"}
    stored |= {"bos_token_id": eot, "eos_token_id": eot}
    if model_type == "gpt_neox":
        older = {"rotary_pct": 1.0, "rotary_emb_base": 10000}  # for transformers 4
        none = dict.fromkeys(("hidden_dropout", "attention_dropout"), 0.0)
        return stored | {"architectures": ["GPTNeoXForCausalLM"]} | older | none
    if model_type == "gpt_neo":
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


NEOX_NAMES = {
    "h.": "layers.", "wte": "embed_in", "ln_f": "final_layer_norm", "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm", "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense", "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
}  # fmt: skip
PREFIX = {"gpt2": "transformer.", "gpt_neo": "transformer.", "gpt_neox": "gpt_neox."}


def _hub_names(name, model_type):
    """The hub's names of a parameter of model.py; three for GPT-Neo's q, k and v."""
    if model_type == "gpt_neo":
        if "attn.c_attn" in name:
            return [name.replace("attn.c_attn", f"attn.attention.{part}_proj") for part in "qkv"]
        name = name.replace("attn.c_proj", "attn.attention.out_proj")
    for part, hub_part in NEOX_NAMES.items() if model_type == "gpt_neox" else ():
        name = name.replace(part, hub_part)
    return [name]


def _is_transposed(name, model_type):
    """Whether GPT-2 stores this weight transposed: its linear layers began as convolutions."""
    ends = "c_attn.weight", "c_proj.weight", "c_fc.weight"
    return model_type == "gpt2" and name.endswith(ends)


def _sort_heads(x, first, second):
    """The rows of a c_attn from the order (first, second, D) to (second, first, D)."""
    return x.unflatten(0, (first, second, -1)).transpose(0, 1).flatten(0, 2)


def from_hub_tensors(tensors, config):
    """{name: float32 tensor} for GPT(config), from the tensors of its architecture.

    Raises UserError where they are no such model's, KeyError for a missing tensor."""
    model_type, state = _model_type(config), {}
    tensors = {name.removeprefix(PREFIX[model_type]): x for name, x in tensors.items()}
    [embedding] = _hub_names("wte.weight", model_type)
    head = [tensors.pop(name) for name in ("lm_head.weight", "embed_out.weight") if name in tensors]
    if not all(torch.equal(x, tensors[embedding]) for x in head):
        raise UserError("its output head is not its token embedding: only tied heads are read")
    if (tokens := len(tensors[embedding])) != config.vocab_size:
        raise UserError(f"it embeds {tokens} tokens; its vocab_size is {config.vocab_size}")
    with WithoutWeights():
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items()}
    used = {part for name in shapes for part in _hub_names(name, model_type)}
    for name in tensors.keys() - used:
        if name.startswith(("h.", "layers.")) and not name.endswith(MASKS):
            raise UserError(f"its weights hold {name}, which its config.json has no place for")
    for name, shape in shapes.items():
        x = torch.cat([tensors[part].float() for part in _hub_names(name, model_type)])
        if name == "wte.weight":  # model.py's rows of padding: no token id selects them
            x = torch.cat([x, x.new_zeros(shape[0] - len(x), shape[1])])
        elif name == "wpe.weight":
            x = x[: shape[0]]
        elif model_type == "gpt_neox" and "attn.c_attn" in name:
            x = _sort_heads(x, config.n_head, 3)
        state[name] = (x.t() if _is_transposed(name, model_type) else x).contiguous()
    return state


def to_hub_tensors(state, config):
    """The tensors of a GPT(config), {name: tensor}, in the layout that `hub_config` names."""
    model_type, tensors = _model_type(config), {}
    for name, x in state.items():
        x = x[: config.vocab_size] if name == "wte.weight" else x
        if model_type == "gpt_neox" and "attn.c_attn" in name:
            x = _sort_heads(x, 3, config.n_head)
        x = x.t() if _is_transposed(name, model_type) else x
        names = _hub_names(name, model_type)
        tensors |= zip(names, x.chunk(len(names)), strict=True)
    if model_type == "gpt2" and not config.qkv_bias:
        names = [f"h.{i}.attn.c_attn.bias" for i in range(config.n_layer)]
        tensors |= {name: torch.zeros(3 * config.n_embd) for name in names}
    return {PREFIX[model_type] + name: x.contiguous() for name, x in tensors.items()}
