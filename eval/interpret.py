"""What a model's attention heads look at and what its neurons fire at, in numbers and on a page.

    python -m eval.interpret out/interpret_heads
    python -m eval.interpret out/interpret_neurons --neurons=7:1,7:54
    python -m eval.interpret --init_from=gpt2 --source=mine.txt --stories=500 --head_stories=16

On held-out stories, every head is classified by how much of its attention distance, repetition and
content explain (attention_heads.py), and every neuron ranked by how alike the tokens of its highest
activations are (neurons.py), beside the neurons of the same architecture with random weights. Each
head, and each neuron shown, is then mean-ablated, to see what the model loses: how much higher the
loss of targets of each part of speech is, in nats, over the same stories. That takes most of the
time: a pass over head_stories for each of them.

Results are in eval/interpret.json of the run, and in eval/interpret.html: one file that needs no
network. It shows attention on the text of Eldan & Li (2023), and of each layer the first, the most
coherent and random neurons. Parts of speech are NLTK's: without its tagger they are left out.
"""

import itertools
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from configs import ROOT, UserError, explained, load, run
from eval import bootstrap, harness
from eval.interpretability import hooks, neurons
from eval.interpretability.attention_heads import PREDICTORS, classify
from eval.interpretability.hooks import TaggedStory, Unit, mean_ablate
from eval.interpretability.page import render
from model import GPT
from nanostories import storage
from nanostories.dataset import sources
from nanostories.dataset.shards import Dataset
from nanostories.text import wordnet
from nanostories.text.pos_tags import POS, tag_tokens
from nanostories.training import checkpoint

# The text in which the paper looks at attention (Eldan & Li 2023, section 5.1).
PAPER_TEXT = ROOT / "eval" / "prompts" / "attention_text.txt"
CONTENT_STORIES = 500  # other stories, over which each token's residual stream is averaged
MAX_WEIGHTS = 8_000_000  # attention weights on the page: 21 MB of it


@dataclass(frozen=True)
class Settings(harness.ModelSettings):
    source: str = ""  # the first stories of any source of prepare.py; default: the run's val split
    text: str = ""  # whose attention the page shows, or FILE:<path>; default: the paper's
    stories: int = 2000  # stories in which neurons are ranked; 0: all there are
    head_stories: int = 64  # of these, for classifying heads and for ablation
    neurons: str = ""  # further neurons to show, layer:neuron, with commas; both count from 0
    top_neurons: int = 5  # most coherent neurons of a layer to show
    random_neurons: int = 3  # random neurons of a layer to show
    seed: int = 1337  # of the choice of stories and neurons, and of the intervals
    stories_range = 0, 10**9


def read_stories(loaded, settings):
    """(texts of stories, a list of str, and the name of their source)."""
    if settings.source:
        texts = sources.read(settings.source)
        return list(itertools.islice(texts, settings.stories or None)), settings.source
    folder = checkpoint.data_folder(loaded, "source")
    data = Dataset(folder, "val").verify()
    order = np.random.default_rng(settings.seed).permutation(data.stories)
    chosen = order[: settings.stories or None].tolist()
    return [loaded.tokenizer.decode(data.story(i)[1:]) for i in chosen], folder


def tag_stories(loaded, texts, tagged):
    """The TaggedStory of each text of three tokens or more, cut where training would cut it."""
    stories, tokenizer = [], loaded.tokenizer
    for text in tqdm(texts, "stories", disable=None):
        ids = [*loaded.bos_ids, *tokenizer.encode(text), tokenizer.eot]
        *ids, target = ids[: loaded.max_length + 1]
        if len(ids) > 2:
            *pos, target_pos = tag_tokens([*ids, target], tokenizer) if tagged else ["end"]
            stories.append(TaggedStory(ids, pos or None, target, target_pos))
    return stories


def has_tagger():
    """Whether NLTK's tagger is there; prints a line where it is not."""
    try:
        wordnet.pos_tags(["a"])
    except UserError as error:
        print(f"parts of speech are left out: {error}")
        return False
    return True


def read_text(settings):
    """The text whose attention is shown."""
    text = settings.text or f"FILE:{PAPER_TEXT}"
    if text.startswith("FILE:"):
        name = text.removeprefix("FILE:")
        with explained(f"'{name}' cannot be read: ", OSError, ValueError):
            text = Path(name).read_text(encoding="utf-8")
    if not text.strip():
        raise UserError("the text is empty")
    return text.strip()


def cut_for_page(loaded, story, text):
    """The beginning of a text's TaggedStory that fits the page; prints a line where it is cut."""
    config = loaded.model.config
    most = int((2 * MAX_WEIGHTS / (config.n_layer * config.n_head)) ** 0.5)
    n, bos = min(len(story.ids), most), len(loaded.bos_ids)
    if n < bos + len(loaded.tokenizer.encode(text)):
        print(f"of the text, the first {n - bos} tokens are shown")
    return TaggedStory(story.ids[:n], story.pos and story.pos[:n])


def parse_neurons(settings, config):
    """The numbers, layer after layer, of the neurons in the setting `neurons`; or UserError."""
    numbers, width = [], config.mlp_width
    for name in filter(None, map(str.strip, settings.neurons.split(","))):
        if not (match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", name)):
            raise UserError(f"neurons are named layer:neuron, with commas, not '{name}'")
        layer, neuron = map(int, match.groups())
        if layer >= config.n_layer or neuron >= width:
            raise UserError(
                f"there is no neuron {name}: the model has layers 0 to {config.n_layer - 1} of "
                f"neurons 0 to {width - 1}"
            )
        numbers.append(layer * width + neuron)
    return numbers


def measure_heads(model, stories, others, decode, seed):
    """A dict for each head: what `classify` returns of it on `stories`, with tokens as text."""
    results, device = [], model.wte.weight.device
    ids = [torch.tensor(one.ids, device=device) for one in stories]
    # Each token's residual stream is averaged over the others: stories that are not classified.
    known = itertools.chain(*(one.ids for one in stories))
    row_of, residuals = hooks.mean_residuals(model, hooks.make_batches(others, device), known)
    for layer in tqdm(range(model.config.n_layer), "heads", disable=None):
        patterns = [hooks.attention_patterns(model, one[None], layer)[0] for one in ids]
        scores = [hooks.content_scores(model, layer, residuals[layer][row_of[one]]) for one in ids]
        rows = classify(patterns, scores, stories, model.window(layer), seed)
        for head, row in enumerate(rows):
            row["top_keys"] = [(decode([k]), *rest) for k, *rest in row["top_keys"]]
            row["top_pairs"] = [(decode([q]), decode([k]), *x) for q, k, *x in row["top_pairs"]]
            results.append({"layer": layer, "head": head} | row)
    return results


def choose_neurons(order, config, requested, settings):
    """{number: why it is shown} of neurons, ascending; order: of all, the most coherent first."""
    rng, width = np.random.default_rng(settings.seed), config.mlp_width
    shown = dict.fromkeys(requested, "requested")
    for layer in range(config.n_layer):
        top = [i for i in order if i // width == layer][: settings.top_neurons]
        random = rng.choice(width, min(settings.random_neurons, width), replace=False)
        reasons = {"first": [layer * width], "most coherent": top, "random": layer * width + random}
        for reason, numbers in reasons.items():
            shown = dict.fromkeys(map(int, numbers), reason) | shown
    return dict(sorted(shown.items()))


def measure_neurons(model, stories, decode, settings, requested):
    """(a dict of the coherence of all neurons, a list of one dict per neuron shown)."""
    config, seed, device = model.config, settings.seed, model.wte.weight.device
    batches = hooks.make_batches(stories, device)
    halves = neurons.top_activations(model, batches)
    random = neurons.top_activations(random_weights(model, seed), batches, "random weights")[1]
    first, held_out, baseline = (neurons.coherence(x, stories, seed) for x in (*halves, random))
    order = neurons.rank(first)
    ranks = np.argsort(order) + 1
    shown = choose_neurons(order, config, requested, settings)
    examples = neurons.examples(model, stories, halves[0], list(shown), device)
    rows = []
    for i, reason in shown.items():
        for example in examples[i]:
            example["tokens"] = [decode([token]) for token in example.pop("ids")]
        layer, neuron = divmod(i, config.mlp_width)
        rows.append({
            "layer": layer, "neuron": neuron, "shown_as": reason,
            "rank": int(ranks[i]), "coherence": float(first["coherence"][i]),
            "coherence_held_out": float(held_out["coherence"][i]),
            "readable": bool(held_out["readable"][i]),
            **{x: float(first[x][i]) for x in ("token_entropy", "pos_entropy") if x in first},
            "examples": examples[i],
        })  # fmt: skip
    by_layer = lambda scores, name: scores[name].reshape(config.n_layer, -1)  # noqa: E731
    return {
        "examples": int(halves[0].values.shape[1]),
        "threshold": held_out["threshold"],
        "readable": bootstrap.mean(held_out["readable"], seed),
        "readable_by_layer": [bootstrap.mean(x, seed) for x in by_layer(held_out, "readable")],
        "readable_random_weights": bootstrap.mean(baseline["readable"], seed),
        "mean_coherence": bootstrap.mean(held_out["coherence"], seed),
        "mean_coherence_random_weights": bootstrap.mean(baseline["coherence"], seed),
        "coherence": by_layer(first, "coherence").round(4).tolist(),
        "coherence_held_out": by_layer(held_out, "coherence").round(4).tolist(),
    }, rows


def random_weights(model, seed):
    """A GPT of the same architecture with the random weights that training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = GPT(model.config)
    fresh.attn = model.attn
    return fresh.to(model.wte.weight.device).eval()


def target_kinds(stories):
    """("all" and the known parts of speech, which of a story's targets they are: bool arrays)."""
    kinds, masks = ["all", *(POS if stories[0].pos else [])], []
    for one in stories:
        targets = np.array([*one.pos[1:], one.next_pos] if one.pos else [""] * len(one.ids))
        masks.append(np.array([(kind == "all") | (targets == kind) for kind in kinds]))
    return kinds, masks


def ablation_losses(model, units, stories, seed):
    """{Unit: {kind: interval}}: how much ablating it raises the loss of `target_kinds`, in nats."""
    batches = hooks.make_batches(stories, model.wte.weight.device)
    means = hooks.mean_activations(model, batches)
    intact = hooks.token_losses(model, batches)
    kinds, masks = target_kinds(stories)
    counts = np.array([mask.sum(1) for mask in masks])  # (stories, kinds)
    results = {}
    for unit in tqdm(units, "ablation", disable=None):
        with mean_ablate(model, unit, means):
            ablated = hooks.token_losses(model, batches)
        rises = np.array([m @ (a - b) for m, a, b in zip(masks, ablated, intact, strict=True)])
        rows = {k: bootstrap.ratio(rises[:, i], counts[:, i], seed) for i, k in enumerate(kinds)}
        results[unit] = {kind: row for kind, row in rows.items() if row}
    return results


def summarize(heads):
    """The heads of each kind, beside those that the paper counts in its one layer of 16 heads."""
    kinds = [row["kind"] for row in heads]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    by_distance = kinds.count("previous token") + kinds.count("distance")
    return (
        f"{len(heads)} heads: {counts}; {by_distance} by distance and {kinds.count('semantic')} "
        "semantic, where the paper has 7 and 3 of 16"
    )


def show(results):
    """Print the tables of heads and neurons."""
    print("\nHeads: the fraction of attention variance explained, and the loss rise when ablated")
    harness.print_table(
        ["head", "kind", *PREDICTORS, "median distance", "on first token", "loss rise", "looks at"],
        [[f"{row['layer']}.{row['head']}", row["kind"], *(row[x] for x in PREDICTORS),
          row["median_distance"], f"{row['first_token']['mean']:.2f}", row["ablation_loss"]["all"],
          " ".join(token.strip() for token, *_ in row["top_keys"][:4])]
         for row in results["heads"]],
    )  # fmt: skip
    print(f"\n{results['summary']}\n")
    rows = []
    for row in results["shown_neurons"]:
        peaks = (one["tokens"][one["peak"]].strip() for one in row["examples"])
        rows.append([f"{row['layer']}.{row['neuron']}", row["shown_as"], row["rank"],
                     row["coherence"], row["coherence_held_out"],
                     bootstrap.format_interval(row["ablation_loss"]["all"], 4),
                     " ".join(dict.fromkeys(peaks))[:60]])  # fmt: skip
    harness.print_table(
        ["neuron", "shown as", "rank", "coherence", "held out", "loss rise", "fires at"], rows
    )
    print("\nAll neurons on held-out stories; readable: more coherent than 99 % of random tokens")
    harness.print_table(["", "coherence", "readable"], [
        [name, *(results["neurons"][f"{key}{suffix}"] for key in ("mean_coherence", "readable"))]
        for name, suffix in (("trained", ""), ("random weights", "_random_weights"))
    ])  # fmt: skip


def main():
    settings, origin = load(Settings, positional="out_dir")
    [loaded] = harness.open_models(settings, origin)
    model, decode = loaded.model, loaded.tokenizer.decode

    requested, tagged = parse_neurons(settings, model.config), has_tagger()
    texts, source = read_stories(loaded, settings)
    text = read_text(settings)
    shown = tag_stories(loaded, [text], tagged)
    stories = tag_stories(loaded, texts, tagged)
    if len(stories) < 4:
        raise UserError(f"'{source}' has fewer than four stories")
    if not shown:
        raise UserError("the text has fewer than three tokens")
    shown = cut_for_page(loaded, shown[0], text)

    few = stories[: settings.head_stories]
    others = stories[settings.head_stories :][:CONTENT_STORIES]
    others = stories if len(others) < len(few) else others  # too few for averages
    heads = measure_heads(model, few, others, decode, settings.seed)
    facts, neuron_rows = measure_neurons(model, stories, decode, settings, requested)
    units = [Unit("head", row["layer"], row["head"]) for row in heads]
    units += [Unit("neuron", row["layer"], row["neuron"]) for row in neuron_rows]
    losses = ablation_losses(model, units, few, settings.seed)
    for unit, row in zip(units, [*heads, *neuron_rows], strict=True):
        row["ablation_loss"] = losses[unit]
    tokens = torch.tensor([shown.ids], device=model.wte.weight.device)
    layers = range(model.config.n_layer)
    patterns = [hooks.attention_patterns(model, tokens, layer)[0].cpu() for layer in layers]
    results = {
        "checkpoint": loaded.identity(), "model": asdict(model.config), "source": source,
        "stories": len(stories), "head_stories": len(few), "seed": settings.seed,
        "stories_sha256": sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest(),
        "text": {"tokens": [decode([i]) for i in shown.ids], "pos": shown.pos},
        "heads": heads, "summary": summarize(heads), "neurons": facts,
        "shown_neurons": neuron_rows,
    }  # fmt: skip
    show(results)
    harness.write_result(loaded.out_dir, "interpret", results)
    path = Path(loaded.out_dir) / "eval" / "interpret.html"
    storage.write_text(path, render(results, patterns, loaded))
    print(f"{path} shows it all: heads, neurons, examples")


if __name__ == "__main__":
    run(main)
