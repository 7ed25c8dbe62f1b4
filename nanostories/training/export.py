"""
A trained model as a folder that other tools read.

    python -m nanostories.training.export out/ts_cpu --out=ts_cpu

    AutoModelForCausalLM.from_pretrained("ts_cpu"), AutoTokenizer.from_pretrained("ts_cpu")
    python ts_cpu/to_gguf.py ../llama.cpp                  # llama.cpp's own converter -> model.gguf

The folder holds the weights in GPT-2's layout (a fine-tuned GPT-Neo stays one) without the padding
of the vocabulary, the tokenizer, which puts <|endoftext|> before every text, what generation needs
to know, and a model card made of the run's own files. Like a checkpoint it appears whole or not at
all.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from configs import ROOT, UserError, load, run
from nanostories import storage
from nanostories.dataset.tokenizer import BPE_PATTERN, EOT
from nanostories.training import checkpoint, huggingface


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: gpt2, a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    to: str = "hf"  # the format; hf is what transformers and llama.cpp's converter read
    out: str = ""  # the folder to write; default: hf in the run folder


def main(argv=None):
    """Export as the words of a command line say; raises UserError where that cannot be."""
    settings, origin = load(Settings, argv, positional="out_dir")
    if settings.to != "hf":
        raise UserError(f"to must be hf, not '{settings.to}'")
    found = checkpoint.load_from_settings(settings, origin, "cpu")
    out = Path(settings.out or Path(found.out_dir) / "hf")
    if out.exists():
        raise UserError(f"'{out}' exists already: remove it, or name another with --out")
    export(found, out)
    print(f"{out}: {found.model.num_params():,} parameters; its README.md says how to use it")


def export(found, out):
    """Write a Trained as the folder `out`, which must not exist; half of one is never left."""
    config, tokenizer = found.model.config, found.tokenizer
    facts = huggingface.hub_config(config)
    tensors = huggingface.to_hub_tensors(found.model.state_dict(), config)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_file(tensors, part / "model.safetensors", {"format": "pt"})
        tokenizer.save(part / "tokenizer.json")
        storage.write_json(part / "config.json", facts)
        storage.write_json(part / "generation_config.json", _generation(found))
        storage.write_json(part / "tokenizer_config.json", _tokenizer(config))
        if facts["model_type"] == "gpt2":
            text = (ROOT / "assets" / "to_gguf.py").read_text(encoding="utf-8")
            kind = "llama-bpe" if tokenizer.patterns == BPE_PATTERN else "gpt-2"
            (part / "to_gguf.py").write_text(text.replace("KIND", kind), encoding="utf-8")
        storage.write_text(part / "README.md", card(found, out.name))
        for path in [*part.iterdir(), part]:
            storage.fsync(path)
        part.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _generation(found):
    """generation_config.json: every story begins and ends with <|endoftext|>."""
    eot = found.tokenizer.eot
    return {
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": eot,
        "do_sample": True,
        "temperature": 0.8,
        "max_length": found.max_length,  # the longest story in training
    }


def _tokenizer(config):
    """tokenizer_config.json; the tokenizer itself is tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "bos_token": EOT,
        "eos_token": EOT,
        "unk_token": EOT,
        "pad_token": EOT,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }


# ----------------------------------------------------------------------------------------------
# the model card


def card(found, name):
    """README.md of the folder: what the model is, from the run's config, data and results."""
    config, out_dir = found.model.config, Path(found.out_dir)
    model = found.model
    lines = [
        "---", "library_name: transformers", "language: en", "pipeline_tag: text-generation",
        "tags: [tinystories, nanostories]", "---", "", f"# {name}", "",
        f"A transformer that tells tiny stories: {config.n_layer} layers of width {config.n_embd}, "
        f"{config.n_head} heads, {config.block_size} positions, {config.vocab_size:,} tokens; "
        f"{model.num_params():,} parameters, {model.num_params(embeddings=False):,} without "
        "embeddings. Made with nanoStories.", "",
        *_use(config), "", "## The model", "", _table(found.identity()),
    ]  # fmt: skip
    if found.is_run():
        train = checkpoint.read_config(out_dir)["train"]
        lines += ["", "## Training", "", _table(train), "", *_data(Path(train["dataset"]))]
    results = sorted((out_dir / "eval").glob("*.json"))
    if results:
        lines += ["", "## Results"]
    for path in results:
        measured = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"### {path.stem}", "", _table(measured)]
    return "\n".join(lines) + "\n"


def _use(config):
    """How to tell a story with transformers, and with llama.cpp."""
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder',
        'model = AutoModelForCausalLM.from_pretrained(".")',
        'prompt = tokenizer("Once upon a time", return_tensors="pt")  # <|endoftext|> comes first',
        "print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))",
        "```",
    ]
    if huggingface.hub_config(config)["model_type"] == "gpt2":
        lines += [
            "",
            "For llama.cpp, with its own converter (a checkout of it, and `pip install gguf`):",
            "",
            "```",
            "python to_gguf.py ../llama.cpp",
            'llama-completion -m model.gguf -p "Once upon a time" -no-cnv',
            "```",
        ]
    return lines


def _data(folder):
    """What the data's manifest tells, where it is still there."""
    try:
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    told = {key: value for key, value in facts.items() if key != "files"}
    return ["## Data", "", _table(told)]


def _table(facts):
    """A markdown table of a dict; dicts within it become rows of their own."""
    rows = ["| | |", "|---|---|"]
    for key, value in facts.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, item in inner:
            text = f"{item:.6g}" if isinstance(item, float) else str(item)
            text = " ".join(text.replace("|", "\\|").split())
            rows.append(f"| {f'{key} {name}'.strip()} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    run(main)
