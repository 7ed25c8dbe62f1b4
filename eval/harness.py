"""What all evaluations share: the models and data that a command names, completions of prompts,
log-likelihoods, and the result file.

    models = open_models(settings, origin)        # a run or a published model, then `beside`
    texts = beginnings("ours")                    # 50 beginnings, cut in mid-sentence
    stories = completions(models[0], texts, settings, 10, folder)    # 10 of each
    margins = log_likelihood_margins(models[0], prompts)   # log p(right) - log p(wrong)
    write_result(models[0].out_dir, "skills", results)     # out/ts_cpu/eval/skills.json
"""

import contextlib
import itertools
import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from configs import ROOT, UserError, pick
from eval import bootstrap
from kernels.cross_entropy import linear_cross_entropy
from nanostories import storage
from nanostories.dataset import instruct, readers, sources
from nanostories.dataset.packing import pad_batch
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import Completion, beam_search, generate, request_seeds
from nanostories.inference.kv_cache import check_finite
from nanostories.training import checkpoint, model_settings
from nanostories.training.device import pick_device

AUTHORS_BEGINNINGS = "Evaluation prompts.yaml"  # 44 of them, in the data set's repository
MIN_STORY_TOKENS = 32  # that a prompt must leave for the story
LIKELIHOOD_BATCH = 32  # continuations scored in one forward pass
SAMPLING = ("temperature", "top_p", "beams", "max_new_tokens", "seed", "weights")


@dataclass(frozen=True)
class ModelSettings(model_settings.ModelSettings):
    """The model that a command evaluates, and where."""

    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is


@dataclass(frozen=True)
class SamplingSettings(ModelSettings):
    """The model that a command evaluates, and how it generates completions."""

    temperature: float = 1.0  # 0: always the likeliest token
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability
    beams: int = 0  # width of a beam search in place of sampling; 0: sample
    max_new_tokens: int = 300  # most tokens of a completion
    seed: int = 1337  # of the sampling, the choice of prompts and the confidence intervals
    batch_size: int = 64  # completions generated at a time
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA


def open_models(settings, origin):
    """A command's LoadedModels: that of ModelSettings, then those of `beside`; or UserError."""
    device = pick_device(settings.device)
    first = model_settings.load_from_settings(settings, origin, device)
    names = beside_names(settings)
    return [first, *(checkpoint.load_model(name, settings.checkpoint, device) for name in names)]


def beside_names(settings):
    """The runs or published models in the setting `beside`, with commas between: a list of str."""
    return [name.strip() for name in getattr(settings, "beside", "").split(",") if name.strip()]


def val_texts(folder):
    """The held-out stories of a token folder, an iterator of str."""
    data, tokenizer = Dataset(folder, "val").verify(), Tokenizer.load(folder)
    return (tokenizer.decode(data.story(i)[1:]) for i in range(data.stories))


# ---- prompts -----------------------------------------------------------------------------------


def beginnings(name):
    """The beginnings that a name stands for, a list of str: "ours" or "" (prompts/beginnings.txt),
    "paper" (the authors' 44, from the hub), or a file: .yaml with a list, or any of prepare.py's.
    """
    if name == "paper":
        try:
            name = readers.download("tinystories", AUTHORS_BEGINNINGS)
        except UserError as error:
            reason = str(error).partition("(")[2].rpartition(")")[0]
            advice = f"use --prompts=ours, or a copy of '{AUTHORS_BEGINNINGS}'"
            raise UserError(f"no beginnings from the hub ({reason}): {advice}") from None
    if str(name).endswith((".yaml", ".yml")):
        import yaml

        try:
            texts = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("it is not a list of beginnings")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"'{name}' cannot be read: {error}".replace("\n", " ")) from None
    else:
        path = ROOT / "eval" / "prompts" / "beginnings.txt" if name in ("", "ours") else name
        texts = list(sources.read(str(path)))
    texts = [text.strip() for text in texts if text.strip()]  # no token begins a word after " "
    if not texts:
        raise UserError(f"no beginnings in '{name}'")
    return texts


def read_instructions(settings, models, count):
    """(`count` instruct.Records drawn by the seed, whose prompts fit every model; the name of their
    source): the setting `source`, else the val split of `dataset` or of the first run's own data.
    Raises UserError where there are fewer than two."""
    source = settings.source or settings.dataset or checkpoint.data_folder(models[0], "source")
    texts = sources.read(source, seed=settings.seed) if settings.source else val_texts(source)
    records = [one for one in map(instruct.parse_record, texts) if one and one.fields]
    if not records:
        raise UserError(f"'{source}' has no Instruct record with an instruction")
    order = np.random.default_rng(settings.seed).permutation(len(records))
    fitting = (records[i] for i in order if fits(models, records[i].prompt()))
    chosen = list(itertools.islice(fitting, count))
    if len(chosen) < min(2, count):
        raise UserError("fewer than two of the instructions leave room for a story")
    return chosen, source


def fits(models, prompt):
    """Whether a prompt leaves every model at least MIN_STORY_TOKENS for a story."""
    room = (model.max_length - len(model.encode_prompt(prompt)) for model in models)
    return min(room) >= MIN_STORY_TOKENS


# ---- completions and their log-likelihoods -----------------------------------------------------


def generate_completions(loaded, texts, settings, num_samples):
    """`num_samples` completions of each text by SamplingSettings: a list of lists of Completion."""
    decoder = open_decoder(loaded.model, settings.weights, loaded.model.wte.weight.device)
    ids = [loaded.encode_prompt(text) for text in texts for _ in range(num_samples)]
    eot = loaded.tokenizer.eot
    lengths = {"max_new_tokens": settings.max_new_tokens, "max_length": loaded.max_length}
    if settings.beams:
        flat = [beam_search(decoder, prompt, eot, settings.beams, **lengths) for prompt in ids]
    else:
        flat = generate(
            decoder, ids, eot, request_seeds(settings.seed, len(ids)), **lengths,
            temperature=settings.temperature, top_p=settings.top_p, batch_size=settings.batch_size,
        )  # fmt: skip
    return [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]


def completions(loaded, texts, settings, num_samples, folder):
    """The texts of `generate_completions`, a list of lists of str, cached in a file of `folder`.

    A command that was killed goes on with the very same completions, even where another number of
    threads would round differently, so no reply of a judge is paid for twice."""
    request = facts_of(loaded, settings) | {"prompts": texts, "num_samples": num_samples}
    # Each request has a file of its own, so none overwrites what was graded for another.
    key = blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=6).hexdigest()
    path = Path(folder) / f"completions-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return storage.from_json(path.read_text(encoding="utf-8"))["completions"]
    samples = generate_completions(loaded, texts, settings, num_samples)
    decoded = [[loaded.tokenizer.decode(one.ids) for one in some] for some in samples]
    storage.write_json(path, {"request": request, "completions": decoded})
    return decoded


def story_of(loaded, completion):
    """(text, whether the story ended) of a Completion of an instruction."""
    # A model of the raw Instruct file writes a Summary after the story: there its story has ended.
    text, rest = instruct.split_story(loaded.tokenizer.decode(completion.ids))
    return text, completion.ended or bool(rest)


def completion_nlls(model, prompts, completions, eot, batch_size=LIKELIHOOD_BATCH):
    """[(negative log-likelihood in nats, tokens)] of each Completion given its prompt, a list of
    ids. The <|endoftext|> counts where the completion ended."""
    results, head = {}, model.head_weight
    # Sorted by length, a batch has little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i].ids))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        some = [prompts[i] for i in batch], [completions[i] for i in batch]
        padded = pad_batch(*some, eot, head.device)
        mask, vocab_size = padded.completion_mask, model.config.vocab_size
        nll = torch.zeros(padded.targets.shape, device=head.device)  # (B, T)
        with torch.no_grad():
            hidden = model.hidden(padded.tokens)[mask]  # logits of the completions alone
            targets = padded.targets[mask]
            nll[mask] = linear_cross_entropy(hidden, head, targets, vocab_size, mean=False)
        check_finite(nll)
        pairs = zip(nll.double().sum(1).tolist(), mask.sum(1).tolist(), strict=True)
        results |= zip(batch, pairs, strict=True)
    return [results[i] for i in range(len(prompts))]


def log_likelihood_margins(loaded, prompts):
    """log p(right | prompt) - log p(wrong | prompt) in nats, of each pair of continuations of each
    knowledge_prompts.Prompt: a list of lists of float. UserError where one exceeds the block_size.
    """
    texts = [(one.text, end) for one in prompts for end in itertools.chain(*one.pairs)]
    starts = [loaded.encode_prompt(text) for text, _ in texts]
    ends = [Completion(loaded.tokenizer.encode(end)) for _, end in texts]
    longest = max(len(start) + len(end.ids) for start, end in zip(starts, ends, strict=True))
    if longest > (block_size := loaded.model.config.block_size):
        raise UserError(f"a prompt has {longest} tokens, but the model ends at {block_size}")
    nlls = completion_nlls(loaded.model, starts, ends, loaded.tokenizer.eot)
    nlls = iter(nll for nll, _ in nlls)
    return [[-next(nlls) + next(nlls) for _ in prompt.pairs] for prompt in prompts]


def margin_scores(margins):
    """Of each prompt the fraction of its margins above 0, and their mean: {name: (prompts,)}."""
    return {
        "accuracy": np.array([np.mean(np.array(pairs) > 0) for pairs in margins]),
        "margin": np.array([np.mean(pairs) for pairs in margins]),
    }


# ---- results -----------------------------------------------------------------------------------


def facts_of(loaded, settings, *names):
    """What results depend on: the checkpoint and its sha256, SAMPLING and further settings."""
    return {"checkpoint": loaded.identity()} | pick(settings, *names, *SAMPLING)


def write_result(out_dir, name, results, lines=None):
    """Write out_dir/eval/<name>.json, and `lines`, dicts, as <name>.jsonl; print the path."""
    path = Path(out_dir) / "eval" / f"{name}.json"
    with storage.lock(path, wait=True):  # so that both files are of the same command
        if lines is not None:
            # ASCII: a judge's reply may hold half a surrogate pair, which UTF-8 cannot encode.
            text = "".join(storage.to_json(line, path) + "\n" for line in lines)
            storage.write_text(path.with_suffix(".jsonl"), text)
        storage.write_json(path, results)
    print(f"\n{path}")


def print_table(head, rows):
    """Print a table. head: column titles. rows: lists of str, numbers, intervals or None, "-"."""
    lines = [head, *([_cell(value) for value in row] for row in rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for label, *cells in lines:
        right = (cell.rjust(width) for cell, width in zip(cells, others, strict=True))
        print("  ".join([label.ljust(first), *right]).rstrip())


def _cell(value):
    if value is None or isinstance(value, dict):
        return bootstrap.format_interval(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
