"""A trained model for others: a folder for other tools, a page for anybody, or a smaller run.

    python -m nanostories.training.export out/ts_cpu --out=ts_cpu

    AutoModelForCausalLM.from_pretrained("ts_cpu"), AutoTokenizer.from_pretrained("ts_cpu")
    python ts_cpu/to_gguf.py llama.cpp                     # llama.cpp's own converter -> model.gguf

    python -m nanostories.training.export out/ts_cpu --to=html --out=story.html
    python -m nanostories.training.export out/ts_cpu --to=run --out=ts_cpu

The folder for other tools holds the weights in GPT-2's layout, with rotary positions in GPT-NeoX's
(a fine-tuned GPT-Neo keeps its own), the tokenizer, which puts <|endoftext|> before every text, the
settings of generation, and a model card made from the run's own files. The page is one file that
runs the model in the browser (export_html.py). The run is a run folder for all commands here, its
one checkpoint in bfloat16 and without what --resume needs. Each is written whole or not at all.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import save_file

from configs import ROOT, UserError, explained, load, run
from nanostories.dataset.tokenizer import BPE_PATTERN, EOT
from nanostories.storage import atomic_folder, lock, read_json, write_json, write_text
from nanostories.training import checkpoint, hub_layouts, model_settings
from nanostories.training.export_html import html_page


@dataclass(frozen=True)
class Settings(model_settings.ModelSettings):
    to: str = "hf"  # hf: a folder for transformers and llama.cpp; html: a page; run: a run folder
    out: str = ""  # what to write; default: hf, story.html or run in the run folder

    to_choices = ("hf", "html", "run")


def main(argv=None):
    settings, origin = load(Settings, argv, positional="out_dir")
    loaded = model_settings.load_from_settings(settings, origin, "cpu")
    names = {"hf": "hf", "html": "story.html", "run": "run"}
    out = Path(settings.out or Path(loaded.out_dir) / names[settings.to])
    with lock(out):
        if out.exists():
            raise UserError(f"'{out}' exists already: remove it, or name another with --out")
        with explained(f"'{out}' cannot be written: ", OSError, SafetensorError):
            if settings.to == "html":
                title = Path(loaded.out_dir).name
                write_text(out, html_page(loaded, title))
            elif settings.to == "run":
                export_run(loaded, settings.checkpoint, out)
            else:
                export(loaded, out)
    advice = {
        "hf": "its README.md says how to use it",
        "html": "open it in a browser, or send it to a friend",
        "run": "a run folder for every command, but for --resume",
    }[settings.to]
    print(f"{out}: {loaded.model.num_params():,} parameters; {advice}")


def export_run(loaded, which, out):
    """Write a checkpoint of a LoadedModel's run as the new run folder `out`, in bfloat16."""
    if not loaded.is_run():
        raise UserError(f"'{loaded.out_dir}' is no run: --to=run takes a run folder")
    state = checkpoint.read_state(loaded.out_dir, which)
    weights = {name: w.to(torch.bfloat16) for name, w in loaded.model.state_dict().items()}
    with atomic_folder(out) as part:
        for name in checkpoint.RUN_FILES:
            if (path := Path(loaded.out_dir) / name).is_file():
                shutil.copyfile(path, part / name)
        checkpoint.write_checkpoint(part, weights, None, state | {"best_step": state["step"]})


def export(loaded, out):
    """Write a LoadedModel as the new folder `out` for transformers and llama.cpp."""
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
    """A dict as (key, text) rows of a markdown table; inner dicts have rows, longer things none."""
    for key, value in values.items():
        for name, item in (value if isinstance(value, dict) else {"": value}).items():
            text = f"{item:.6g}" if isinstance(item, float) else str(item)
            if len(text) < 500:  # not the results of each story
                yield f"{key} {name}".strip(), " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    run(main)
