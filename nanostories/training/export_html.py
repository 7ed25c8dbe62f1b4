"""A model as one HTML file that generates stories in the browser: no server, no network.

    python -m nanostories.training.export out/ts_cpu --to=html --out=story.html

The file is the page of `sample.py --serve` with nanostories/page/model.js in place of the server:
the forward pass of model.py in JavaScript. Matrices have 8 bits a weight and one scale a row.
"""

import base64

from nanostories.page import fill
from nanostories.training import hub_layouts
from nanostories.training.int8 import quantize_rows

# Whatever the page holds, it loads nothing: the browser refuses every request.
POLICY = (
    "default-src 'none'; script-src 'nonce-story'; style-src 'nonce-story'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
SAMPLING = {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 500}  # as in sample.py
CHUNK = 3 * 2**16  # bytes of weights in a script element; the page shows how many have come


def html_page(loaded, title):
    """The page of a LoadedModel, as text. title: of the page. UserError for what model.js lacks."""
    hub_layouts.check_exportable(loaded.model.config)
    tensors, data = pack(loaded.model)
    tokenizer, config = loaded.tokenizer, vars(loaded.model.config)
    chunks = [*(data[i : i + CHUNK] for i in range(0, len(data), CHUNK)), b""]
    settings = SAMPLING | {
        "title": title, "max_length": loaded.max_length, "bos_ids": loaded.bos_ids,
        "config": config, "tensors": tensors, "bytes": len(data), "parts": len(chunks),
        "tokens": [token.decode("latin-1") for token in tokenizer.tokens],
        "pattern": javascript_pattern(tokenizer.patterns[1]),
    }  # fmt: skip
    weights = "".join(
        f'<script class="weights" type="text/plain">{base64.b64encode(chunk).decode()}</script>\n'
        for chunk in chunks
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return fill("model.js", settings, head, weights).replace("{nonce}", "story")


def pack(model):
    """({name: {"offset", "shape"}}, bytes) of a GPT's weights: matrices int8, each with the scales
    of its rows as <name>.scale; scales, biases and gains float32. All little-endian, at multiples
    of four bytes; the vocabulary without its padding."""
    tensors, data = {}, bytearray()

    def add(name, tensor):
        tensors[name] = {"offset": len(data), "shape": list(tensor.shape)}
        data.extend(tensor.contiguous().numpy().tobytes())
        data.extend(b"\0" * (-len(data) % 4))

    for name, weight in model.state_dict().items():
        weight = weight.float().cpu()
        if name == "wte.weight":
            weight = weight[: model.config.vocab_size]
        if weight.ndim == 2:
            weight, scale = quantize_rows(weight)
            add(f"{name}.scale", scale)
        add(name, weight)
    return tensors, bytes(data)


def javascript_pattern(pattern):
    """A tokenizer's regex as JavaScript reads it, with the flag u: its \\s is another set of
    characters, and not every browser knows (?i:...)."""
    pattern = pattern.replace("(?i:[sdmt]|ll|ve|re)", "(?:[sſdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])")
    return pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")
