"""This folder as model.gguf, by llama.cpp's own converter.

    python to_gguf.py llama.cpp [--outtype=f16]            # a clone of llama.cpp

The converter recognizes pre-tokenizers by a list of known tokenizers. One trained on stories is not
in that list, so this script names its pre-tokenizer. llama.cpp also knows no GPT-NeoX whose output
head is its token embedding, so such a model gets a copy of it. The converter does the rest.
"""

import sys
from pathlib import Path

if len(sys.argv) < 2 or not Path(sys.argv[1], "convert_hf_to_gguf.py").exists():
    sys.exit("usage: python to_gguf.py <a checkout of llama.cpp> [its converter's options]")
here, checkout, *options = Path(__file__).resolve().parent, Path(sys.argv[1]), *sys.argv[2:]
sys.path[:0] = [str(checkout), str(checkout / "gguf-py")]

import convert_hf_to_gguf as converter  # noqa: E402

try:
    from conversion.base import TextModel
except ImportError:  # an older checkout has all of it in one file
    TextModel = converter.TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "PRE_TOKENIZER"


def make_readable(model):
    """Teach the converter's GPT-NeoX what these models have: all of a head turned by its position,
    which transformers 5 leaves unsaid, and the embedding once more as the head."""
    set_parameters, modify_tensors = model.set_gguf_parameters, model.modify_tensors

    def all_rotary(self):
        self.hparams.setdefault("rotary_pct", 1.0)
        set_parameters(self)

    def tied(self, data, name, layer):
        yield from modify_tensors(self, data, name, layer)
        if name == "gpt_neox.embed_in.weight":
            yield self.map_tensor_name("embed_out.weight"), data

    model.set_gguf_parameters, model.modify_tensors = all_rotary, tied


if "GPTNeoX" in (here / "config.json").read_text():
    try:
        from conversion.gpt_neox import GPTNeoXModel
    except ImportError:
        GPTNeoXModel = converter.GPTNeoXModel
    make_readable(GPTNeoXModel)
sys.argv = ["convert", str(here), f"--outfile={here / 'model.gguf'}", *options]
converter.main()
