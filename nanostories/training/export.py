"""A trained model as a folder that other tools read.

    python -m nanostories.training.export out/ts_cpu --out=ts_cpu

    AutoModelForCausalLM.from_pretrained("ts_cpu"), AutoTokenizer.from_pretrained("ts_cpu")
    python ts_cpu/to_gguf.py ../llama.cpp                  # llama.cpp's own converter -> model.gguf

The folder holds the weights in GPT-2's layout (a fine-tuned GPT-Neo keeps its own) without the
padding of the vocabulary, the tokenizer, which puts <|endoftext|> before every text, the settings
of generation, and a model card made from the run's own files. It is written whole or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from configs import ROOT, UserError, load, run
from nanostories.dataset.tokenizer import BPE_PATTERN, EOT
from nanostories.storage import atomic_folder, write_json, write_text
from nanostories.training import checkpoint, huggingface


@dataclass(frozen=True)
class Settings(checkpoint.ModelSettings):
    out: str = ""  # the folder to write; default: hf in the run folder


def main(argv=None):
    """Export the model that a command line names; raises UserError if that cannot be done."""
    settings, origin = load(Settings, argv, positional="out_dir")
    loaded = checkpoint.load_from_settings(settings, origin, "cpu")
    out = Path(settings.out or Path(loaded.out_dir) / "hf")
    if out.exists():
        raise UserError(f"'{out}' exists already: remove it, or name another with --out")
    export(loaded, out)
    print(f"{out}: {loaded.model.num_params():,} parameters; its README.md says how to use it")


def export(loaded, out):
    """Write a LoadedModel as the new folder `out`; raises UserError if that cannot be done."""
    config, tokenizer, eot = loaded.model.config, loaded.tokenizer, loaded.tokenizer.eot
    hub_config = huggingface.hub_config(config)
    tensors = huggingface.to_hub_tensors(loaded.model.state_dict(), config)
    generation_config = {
        "bos_token_id": eot,  # a story begins and ends with <|endoftext|>
        "eos_token_id": eot,
        "pad_token_id": eot,
        "do_sample": True,
        "temperature": 0.8,
        "max_length": loaded.max_length,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT),
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    try:
        with atomic_folder(out) as part:
            save_file(tensors, part / "model.safetensors", {"format": "pt"})
            tokenizer.save(part / "tokenizer.json")
            write_json(part / "config.json", hub_config)
            write_json(part / "generation_config.json", generation_config)
            write_json(part / "tokenizer_config.json", tokenizer_config)
            if hub_config["model_type"] == "gpt2":
                pre_tokenizer = "llama-bpe" if tokenizer.patterns == BPE_PATTERN else "gpt-2"
                script = (ROOT / "assets" / "to_gguf.py").read_text(encoding="utf-8")
                write_text(part / "to_gguf.py", script.replace("PRE_TOKENIZER", pre_tokenizer))
            write_text(part / "README.md", model_card(loaded, Path(out).name))
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error


# ----------------------------------------------------------------------------------------------
# the model card

HEADER = """\
---
library_name: transformers
language: en
pipeline_tag: text-generation
tags: [tinystories, nanostories]
---

# {name}

A transformer that generates tiny stories: {c.n_layer} layers of width {c.n_embd}, {c.n_head} heads,
{c.block_size} positions, {c.vocab_size:,} tokens; {parameters:,} parameters, {body:,} without
embeddings. Made with nanoStories.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = AutoModelForCausalLM.from_pretrained(".")
prompt = tokenizer("Once upon a time", return_tensors="pt")  # <|endoftext|> comes first
print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))
```
"""
LLAMA_CPP = """
For llama.cpp, with its own converter (a checkout of it, and `pip install gguf`):

```
python to_gguf.py ../llama.cpp
llama-completion -m model.gguf -p "Once upon a time" -no-cnv
```
"""


def model_card(loaded, name):
    """README.md of the folder: what the model is, from the run's config, data and results."""
    model, out_dir = loaded.model, Path(loaded.out_dir)
    counts = {"parameters": model.num_params(), "body": model.num_params(embeddings=False)}
    text = HEADER.format(name=name, c=model.config, **counts)
    if huggingface.hub_config(model.config)["model_type"] == "gpt2":
        text += LLAMA_CPP
    sections = {"## The model": loaded.identity()}
    if loaded.is_run():
        train = checkpoint.read_config(out_dir)["train"]
        sections["## Training"] = train
        manifest = Path(train["dataset"], "manifest.json")
        if train["dataset"] and manifest.exists():
            data = json.loads(manifest.read_text(encoding="utf-8"))
            sections["## Data"] = {key: value for key, value in data.items() if key != "files"}
    for path in sorted((out_dir / "eval").glob("*.json")):
        sections[f"## Result: {path.stem}"] = json.loads(path.read_text(encoding="utf-8"))
    return text + "".join(f"\n{title}\n\n{_table(values)}\n" for title, values in sections.items())


def _table(values):
    """A markdown table of a dict; the items of inner dicts become rows of their own."""
    rows = ["| | |", "|---|---|"]
    for key, value in values.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in inner:
            text = f"{item:.6g}" if isinstance(item, float) else str(item)
            text = " ".join(text.replace("|", "\\|").split())
            rows.append(f"| {f'{key} {name}'.strip()} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    run(main)
