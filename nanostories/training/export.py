"""A trained model as a folder that other tools read.

    python -m nanostories.training.export out/ts_cpu --out=ts_cpu

    AutoModelForCausalLM.from_pretrained("ts_cpu"), AutoTokenizer.from_pretrained("ts_cpu")
    python ts_cpu/to_gguf.py llama.cpp                     # llama.cpp's own converter -> model.gguf

The folder holds the weights in GPT-2's layout, with rotary positions in GPT-NeoX's (a fine-tuned
GPT-Neo keeps its own), the tokenizer, which puts <|endoftext|> before every text, the settings of
generation, and a model card made from the run's own files. It is written whole or not at all.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import save_file

from configs import ROOT, UserError, load, run
from nanostories.dataset.tokenizer import BPE_PATTERN, EOT
from nanostories.storage import atomic_folder, lock, read_json, write_json, write_text
from nanostories.training import checkpoint, hub_layouts


@dataclass(frozen=True)
class Settings(checkpoint.ModelSettings):
    out: str = ""  # the folder to write; default: hf in the run folder


def main(argv=None):
    settings, origin = load(Settings, argv, positional="out_dir")
    loaded = checkpoint.load_from_settings(settings, origin, "cpu")
    out = Path(settings.out or Path(loaded.out_dir) / "hf")
    with lock(out):
        if out.exists():
            raise UserError(f"'{out}' exists already: remove it, or name another with --out")
        export(loaded, out)
    print(f"{out}: {loaded.model.num_params():,} parameters; its README.md says how to use it")


def export(loaded, out):
    """Write a LoadedModel as the new folder `out`; raises UserError if that cannot be done."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    hub_config = hub_layouts.hub_config(config)
    tensors = hub_layouts.to_hub_tensors(loaded.model.state_dict(), config)
    generation_config = {
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot),
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
    llama_cpp = hub_config["model_type"] != "gpt_neo"  # which it does not read
    try:
        with atomic_folder(out) as part:
            save_file(tensors, part / "model.safetensors", {"format": "pt"})
            tokenizer.save(part / "tokenizer.json")
            write_json(part / "config.json", hub_config)
            write_json(part / "generation_config.json", generation_config)
            write_json(part / "tokenizer_config.json", tokenizer_config)
            if llama_cpp:
                pre_tokenizer = "llama-bpe" if tokenizer.patterns == BPE_PATTERN else "gpt-2"
                script = (ROOT / "assets" / "to_gguf.py").read_text(encoding="utf-8")
                write_text(part / "to_gguf.py", script.replace("PRE_TOKENIZER", pre_tokenizer))
            write_text(part / "README.md", model_card(loaded, Path(out).name, llama_cpp))
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{out}' cannot be written: {error}") from error


def model_card(loaded, name, llama_cpp):
    """README.md of the folder: what the model is, from the run's config, data and results."""
    model, out_dir = loaded.model, Path(loaded.out_dir)
    facts = {"The model": loaded.identity()}
    if loaded.is_run():
        facts["Training"] = checkpoint.read_config(out_dir)["train"]
        with contextlib.suppress(UserError):  # it is gone, or holds other data now
            manifest = checkpoint.read_manifest(checkpoint.data_folder(loaded))
            facts["Data"] = {k: value for k, value in manifest.items() if k != "files"}
    for path in sorted((out_dir / "eval").glob("*.json")):
        facts[f"Result: {path.stem}"] = read_json(path)
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return Template(template, trim_blocks=True, keep_trailing_newline=True).render(
        name=name,
        c=model.config,
        parameters=model.num_params(),
        body=model.num_params(embeddings=False),
        llama_cpp=llama_cpp,
        tables={title: _table_rows(values) for title, values in facts.items()},
    )


def _table_rows(values):
    """A dict as (key, text) rows of a markdown table; inner dicts have rows of their own."""
    for key, value in values.items():
        for name, item in (value if isinstance(value, dict) else {"": value}).items():
            text = f"{item:.6g}" if isinstance(item, float) else str(item)
            yield f"{key} {name}".strip(), " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    run(main)
