"""The page of eval.interpret: page.html with the results in it, a single file.

    html = render(results, patterns, loaded)      # results: what eval/interpret.json holds

Everything from a model or a text goes in as JSON that cannot end its <script>, and the page shows
it as text, never as HTML. The page's content security policy lets nothing load and no other script
run.
"""

import base64
import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
from jinja2 import Template
from markupsafe import Markup

LEVELS = 65535  # of a stored attention weight, from 0 to 1


def pack(patterns):
    """A layer's patterns (H, T, T) as text: each head's rows, j <= i, as uint16 in base64."""
    n = patterns.shape[-1]
    causal = patterns.numpy()[:, *np.tril_indices(n)]  # (H, T (T + 1) / 2), row after row
    return [
        base64.b64encode(np.round(row * LEVELS).astype("<u2").tobytes()).decode() for row in causal
    ]


def read_patterns(path):
    """The attention that a page of `render` shows: a float array (H, T, T) for each layer."""
    text = re.search(r' id="data"[^>]*>(.*?)</script>', path.read_text("utf-8"), re.DOTALL)[1]
    data, layers = json.loads(text), []
    for heads in data["patterns"]:
        layers.append(np.zeros((len(heads), *[len(data["text"]["tokens"])] * 2)))
        rows = [np.frombuffer(base64.b64decode(head), "<u2") / LEVELS for head in heads]
        layers[-1][:, *np.tril_indices(layers[-1].shape[1])] = rows
    return layers


def render(results, patterns, loaded):
    """The page as HTML. patterns: the attention of each layer (H, T, T) on the results' text."""
    config = loaded.model.config
    name = Path(loaded.out_dir).name if loaded.is_run() else loaded.provenance["model"]
    facts = [
        f"{config.n_layer} layer{'s' * (config.n_layer > 1)}, {config.n_embd:,} wide, "
        f"{config.n_head} heads",
        f"{loaded.model.num_params() / 1e6:.2f} M parameters",
        *([f"step {loaded.provenance['step']:,}"] if loaded.is_run() else []),
        f"stories of {results['source']}: {results['head_stories']} for the heads, "
        f"{results['stories']:,} for the neurons",
    ]
    shared = ("text", "heads", "summary", "shown_neurons")
    data = {key: results[key] for key in shared} | {
        "name": str(name), "facts": facts, "patterns": [pack(layer) for layer in patterns],
        "neurons": {name: value for name, value in results["neurons"].items()
                    if name not in ("coherence", "coherence_held_out")},
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    nonce = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = Template(template, autoescape=True, keep_trailing_newline=True)
    return page.render(title=f"Heads and neurons of {name}", nonce=nonce, data=Markup(text))
