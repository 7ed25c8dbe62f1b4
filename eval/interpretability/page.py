"""
The page of what interpret.py found: page.html with the results put in, one file by itself.

    page(results, maps, found)      # results: what eval/interpret.json holds; returns HTML

All that comes from a model or a text goes in as JSON that cannot end its <script>, and the page
puts it on the screen as text, never as HTML; a policy in the page lets nothing be loaded, and no
other script run.
"""

import base64
import json
import re
from hashlib import sha256
from html import escape
from pathlib import Path

import numpy as np

LEVELS = 65535  # a weight is stored as so many parts of 1


def packed(maps):
    """
    A layer's maps (H, T, T) as text: each head's rows, j <= i, in uint16 parts of 1, in base64.
    """
    n = maps.shape[-1]
    seen = maps.numpy()[:, *np.tril_indices(n)]  # (H, T (T + 1) / 2), row after row
    return [
        base64.b64encode(np.round(row * LEVELS).astype("<u2").tobytes()).decode() for row in seen
    ]


def page(results, maps, found):
    """
    The page. maps: of each layer (H, T, T), of the results' text. found: the pretrained.Trained.
    """
    config, neurons = found.model.config, results["neurons"]
    name = Path(found.out_dir).name if found.is_run() else found.provenance["model"]
    facts = [
        f"{config.n_layer} layer{'s' * (config.n_layer > 1)}, {config.n_embd:,} wide, "
        f"{config.n_head} heads",
        f"{found.model.num_params() / 1e6:.2f} M parameters",
        *([f"step {found.provenance['step']:,}"] if found.is_run() else []),
        f"stories of {results['source']}: {results['head_stories']} for the heads, "
        f"{results['stories']:,} for the neurons",
    ]
    shared = ("text", "heads", "summary", "shown")
    data = {key: results[key] for key in shared} | {
        "name": str(name), "facts": facts, "maps": [packed(layer) for layer in maps],
        "neurons": {x: y for x, y in neurons.items() if x not in ("coherence", "coherence_again")},
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    nonce = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    holes = {"{title}": escape(f"Inside {name}"), "{nonce}": nonce, "{data}": text}
    # In one pass: nothing that is put in is looked at again.
    return re.sub("{title}|{nonce}|{data}", lambda hole: holes[hole[0]], template)
