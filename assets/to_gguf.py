"""This folder as model.gguf, by llama.cpp's own converter.

    python to_gguf.py llama.cpp [--outtype=f16]            # a clone of llama.cpp

The converter recognizes pre-tokenizers by a list of known tokenizers. One trained on stories is not
in that list, so this script names its pre-tokenizer. The converter does the rest.
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
sys.argv = ["convert", str(here), f"--outfile={here / 'model.gguf'}", *options]
converter.main()
