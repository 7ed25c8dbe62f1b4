"""
What a model's heads look at and what its neurons fire at, in numbers and on a page to explore.

    python -m eval.interpret out/interpret_heads
    python -m eval.interpret out/interpret_neurons --neurons=7:1,7:54
    python -m eval.interpret --init_from=gpt2 --source=mine.txt --stories=500 --head_stories=16

On held-out stories every head is classified by how much of its attention follows from distance,
repetition or words alone (attention_heads.py), and every neuron ranked by how alike the tokens are
at which it is highest (neurons.py; shown are of each layer the first, the best ones and random
ones), beside the neurons of the same architecture with random weights. Each head and each neuron
shown is then replaced by its average, to see what the model loses by it: how much higher the loss
of targets of each part of speech is, in nats, over the same stories, with 95 % bootstrap intervals.
The paper's section on interpretability (Eldan & Li 2023) has one text and looks at it; that text is
the one whose attention the page shows.

Most of the time goes into that replacing: a pass over head_stories for each head and each neuron
shown. Results are in eval/interpret.json of the run, and in eval/interpret.html: one file that
needs no network. Parts of speech are NLTK's: without its tagger they are left out, and a line says
so.
"""

import itertools
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from configs import UserError, load, run
from eval import bootstrap
from eval.interpretability import hooks, neurons
from eval.interpretability.attention_heads import GUESSES, Story, classify
from eval.interpretability.hooks import Unit, without
from eval.interpretability.page import page
from model import GPT
from nanostories import storage
from nanostories.dataset import sources
from nanostories.dataset.shards import Dataset
from nanostories.text import wordnet
from nanostories.text.pos_tags import POS, tag_tokens
from nanostories.training import checkpoint
from nanostories.training.device import pick_device

# The text in which the paper looks at attention (Eldan & Li 2023, section 5.1).
LUCY = (
    'One day, Lucy asks Tom: "I am looking for a banana but I can\'t find it". Tom says: "Don\'t '
    'worry, I will help you". Lucy and Tom go to the park. They look for the banana together. '
    'After a while, they found the banana. Lucy is happy. She says: "Thank you, Tom. You are a '
    'good friend." Tom: "You are welcome, Lucy. I am happy to help you. Let\'s eat the banana '
    'together!"'
)
PAPER = {"distance": 7, "semantic": 3}  # heads of its 16, one layer, 1,024 wide
WORD_STORIES = 500  # other stories in which each word is averaged
SHOWN = 8_000_000  # attention weights on the page, at most: 21 MB of it
DISTANCES = ("previous token", "distance")  # kinds that the paper calls distance-based


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    source: str = ""  # the first stories of any source of prepare.py; default: the run's val split
    text: str = ""  # whose attention the page shows, or FILE:<path>; default: the paper's
    stories: int = 2000  # how many stories the neurons are looked for in; 0: all there are
    head_stories: int = 64  # how many of these the heads are classified on, and units taken away
    neurons: str = ""  # further neurons to show, layer:neuron, with commas; both count from 0
    best: int = 5  # neurons of a layer that are shown because they are most coherent
    random: int = 3  # and because they were drawn
    seed: int = 1337  # of the choice of stories and neurons, and of the intervals
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is


# ----------------------------------------------------------------------------------------------
# what is read


def texts_of(found, settings):
    """The stories that are read: a list of str, and what they are called."""
    if settings.source:
        name = settings.source
        texts = list(itertools.islice(sources.read(name), settings.stories or None))
    else:
        name = checkpoint.data_folder(found, "source")
        data = Dataset(name, "val")
        order = np.random.default_rng(settings.seed).permutation(data.stories)
        chosen = order[: settings.stories or None].tolist()
        texts = [found.tokenizer.decode(data.story(i)[1:]) for i in chosen]
    return texts, name


def stories_of(found, texts, tagged):
    """
    The heads.Story of each text, cut where the model's training would have; those of under three
    tokens, in which nothing can be seen, are left out.
    """
    stories, tokenizer = [], found.tokenizer
    for text in tqdm(texts, "stories", disable=None):
        ids = [*found.bos_ids, *tokenizer.encode(text), tokenizer.eot]
        ids = ids[: found.max_length + 1]  # the last is read as a target only
        parts = tag_tokens(ids, tokenizer) if tagged else None
        if len(ids) > 3:
            ends = parts and parts[:-1], ids[-1], parts[-1] if parts else "end"
            stories.append(Story(ids[:-1], *ends))
    return stories


def can_tag():
    """Whether NLTK's tagger is there; a line says so where not."""
    try:
        wordnet.pos_tags(["a"])
    except UserError as error:
        print(f"parts of speech are left out: {error}")
        return False
    return True


def text_of(settings):
    """The text that is shown."""
    text, name = settings.text or LUCY, settings.text.removeprefix("FILE:")
    if name != settings.text:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"'{name}' cannot be read: {error}") from None
    if not text.strip():
        raise UserError("the text is empty")
    return text.strip()


def fitting(found, story, text):
    """The beginning of a text's Story that fits the page; a line says so where that is not all."""
    config = found.model.config
    most = int((2 * SHOWN / (config.n_layer * config.n_head)) ** 0.5)
    n = min(len(story.ids), most)
    if n < len(found.bos_ids) + len(found.tokenizer.encode(text)):
        print(f"of the text its first {n - len(found.bos_ids)} tokens are shown")
    return Story(story.ids[:n], story.parts and story.parts[:n])


def asked_for(settings, config):
    """[(layer, neuron)] that the setting `neurons` names; UserError where there is no such one."""
    found = []
    for word in filter(None, (x.strip() for x in settings.neurons.split(","))):
        layer, colon, index = word.partition(":")
        if not (colon and layer.isdecimal() and index.isdecimal()):
            raise UserError(f"neurons are named layer:neuron, with commas, not '{word}'")
        if int(layer) >= config.n_layer or int(index) >= 4 * config.n_embd:
            raise UserError(
                f"there is no neuron {word}: the model has layers 0 to {config.n_layer - 1} of "
                f"neurons 0 to {4 * config.n_embd - 1}"
            )
        found.append((int(layer), int(index)))
    return found


# ----------------------------------------------------------------------------------------------
# what is measured


def read_heads(model, stories, others, settings):
    """
    One dict for each head of the model: its layer and number, and what `classify` says of it on
    some stories. others: those that say what a word is on average.
    """
    found, device = [], model.wte.weight.device
    batches = hooks.rows_of(others, device)
    asked = itertools.chain(*(one.ids for one in stories))
    row_of, vectors = hooks.average_words(model, batches, asked)
    for layer in tqdm(range(model.config.n_layer), "heads", disable=None):
        maps, scores = [], []
        for one in stories:
            tokens = torch.tensor([one.ids], device=device)
            maps.append(hooks.attention_maps(model, tokens, layer)[0])
            average = vectors[layer][[row_of[i] for i in one.ids]]  # (T, C)
            scores.append(hooks.word_scores(model, layer, average))
        rows = classify(maps, scores, stories, model.window(layer), settings.seed)
        found += [{"layer": layer, "head": h} | row for h, row in enumerate(rows)]
    return found


def kinds_of_targets(stories):
    """
    ["all", and each part of speech, where it is known], and which targets of each Story are of each
    kind: bool (kinds, tokens).
    """
    found = []
    for one in stories:
        rows = [np.ones(len(one.ids), bool)]
        if one.parts:
            named = np.array([*one.parts[1:], one.last_part])
            rows += [named == part for part in POS]
        found.append(np.stack(rows))
    return ["all", *(POS if stories[0].parts else [])], found


def losses_without(model, units, stories, seed):
    """
    {unit: {"all" and each part of speech: interval}}: how much higher the loss of targets of that
    part of speech is without the Unit, in nats.
    """
    batches = hooks.rows_of(stories, model.wte.weight.device)
    averages = hooks.means(model, batches)
    whole = hooks.losses(model, batches)
    kinds, of = kinds_of_targets(stories)
    counts = np.array([which.sum(1) for which in of])  # (stories, kinds)
    found = {}
    for unit in tqdm(units, "without", disable=None):
        with without(model, unit, averages):
            now = hooks.losses(model, batches)
        more = np.array([w @ (a - b) for w, a, b in zip(of, now, whole, strict=True)])
        rows = {k: bootstrap.ratio(more[:, i], counts[:, i], seed) for i, k in enumerate(kinds)}
        found[unit] = {kind: row for kind, row in rows.items() if row}
    return found


def untrained(model, seed):
    """A GPT of the same architecture with the random weights that training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = GPT(model.config)
    fresh.attn = model.attn
    return fresh.to(model.wte.weight.device).eval()


def read_neurons(model, stories, settings, asked):
    """
    (facts, [neuron]): the coherence of all neurons, and of those shown everything but the loss.
    """
    config, rng = model.config, np.random.default_rng(settings.seed)
    device, width = model.wte.weight.device, 4 * model.config.n_embd
    batches = hooks.rows_of(stories, device)
    ranks, checks = neurons.search(model, batches)
    random = neurons.search(untrained(model, settings.seed), batches, "random weights")[1]
    first, again, chance = (
        neurons.coherence(one, stories, settings.seed) for one in (ranks, checks, random)
    )
    order = neurons.ranked(first)
    why = {(layer, index): "asked for" for layer, index in asked}
    for layer in range(config.n_layer):
        mine = [int(i) % width for i in order if i // width == layer]
        drawn = rng.choice(width, min(settings.random, width), replace=False).tolist()
        why.setdefault((layer, 0), "the first")
        for name, some in (("most coherent", mine[: settings.best]), ("drawn", drawn)):
            for index in some:
                why.setdefault((layer, index), name)
    numbers = {place: place[0] * width + place[1] for place in why}
    shown = neurons.examples(model, stories, ranks, list(numbers.values()), device)
    place_of = {int(neuron): place for place, neuron in enumerate(order, 1)}
    rows = [
        {
            "layer": place[0], "neuron": place[1], "why": why[place], "rank": place_of[i],
            "coherence": float(first["coherence"][i]),
            "coherence_again": float(again["coherence"][i]),
            "readable": bool(again["readable"][i]),
            **{f"entropy_of_{x}": float(first[x][i]) for x in ("tokens", "parts") if x in first},
            "examples": shown[i],
        }
        for place, i in sorted(numbers.items())
    ]  # fmt: skip
    readable = again["readable"].reshape(config.n_layer, width)
    facts = {
        "examples": int(ranks.values.shape[1]),
        "chance": again["chance"],
        "readable": bootstrap.mean(readable.flatten(), settings.seed),
        "readable_by_layer": [bootstrap.mean(row, settings.seed) for row in readable],
        "readable_of_random_weights": bootstrap.mean(chance["readable"], settings.seed),
        "mean": bootstrap.mean(again["coherence"], settings.seed),
        "mean_of_random_weights": bootstrap.mean(chance["coherence"], settings.seed),
        "coherence": np.round(first["coherence"], 4).reshape(config.n_layer, width).tolist(),
        "coherence_again": np.round(again["coherence"], 4).reshape(config.n_layer, width).tolist(),
    }
    return facts, rows


# ----------------------------------------------------------------------------------------------
# the command


def show(results):
    """Print what was found of the heads and of the neurons."""
    print(f"\n{'head':>8} {'kind':<15}{'distance':>24}{'median':>7}{'repetition':>26}{'words':>26}"
          f"{'first':>7}{'loss without':>26}  looks at")  # fmt: skip
    for row in results["heads"]:
        cells = [bootstrap.format_interval(row[x]) for x in GUESSES]
        words = " ".join(token.strip() for token, *_ in row["keys"][:4])
        print(f"{row['layer']:>5}.{row['head']:<2} {row['kind']:<15}{cells[0]:>24}"
              f"{row['median']:>7}{cells[1]:>26}{cells[2]:>26}{row['first']['mean']:>7.2f}"
              f"{bootstrap.format_interval(row['loss']['all']):>26}  {words}")  # fmt: skip
    print(f"\n{results['summary']}")
    facts = results["neurons"]
    print(f"\n{'neuron':>8} {'shown as':<14}{'rank':>7}{'coherence':>11}{'again':>8}"
          f"{'loss without':>29}  fires at")  # fmt: skip
    for row in results["shown"]:
        tokens = (one["tokens"][one["at"]].strip() for one in row["examples"])
        words = " ".join(dict.fromkeys(tokens))
        print(f"{row['layer']:>3}.{row['neuron']:<5}{row['why']:<14}{row['rank']:>7}"
              f"{row['coherence']:>11.3f}{row['coherence_again']:>8.3f}"
              f"{bootstrap.format_interval(row['loss']['all'], 4):>29}  {words[:60]}")  # fmt: skip
    print("\ncoherence of all neurons: " + bootstrap.format_interval(facts["mean"])
          + "; readable, above 99 of 100 sets of random tokens: "
          + bootstrap.format_interval(facts["readable"]) + "; of random weights: "
          + bootstrap.format_interval(facts["mean_of_random_weights"]) + ", "
          + bootstrap.format_interval(facts["readable_of_random_weights"]))  # fmt: skip


def summary(heads):
    """The paper's count of heads beside ours."""
    kinds = [row["kind"] for row in heads]
    ours = {kind: kinds.count(kind) for kind in dict.fromkeys(sorted(kinds))}
    near = sum(kinds.count(kind) for kind in DISTANCES)
    said = ", ".join(f"{count} {kind}" for kind, count in ours.items())
    return (
        f"{len(heads)} heads: {said}; so {near} by distance and {kinds.count('semantic')} "
        f"semantic, where the paper has {PAPER['distance']} and {PAPER['semantic']} of 16"
    )


def main():
    settings, origin = load(Settings, positional="out_dir")
    if settings.stories < 0 or settings.head_stories < 4:
        raise UserError("stories must not be negative, head_stories at least 4")
    if settings.best < 0 or settings.random < 0:
        raise UserError("best and random must not be negative")
    found = checkpoint.load_from_settings(settings, origin, pick_device(settings.device))
    asked = asked_for(settings, found.model.config)
    tagged = can_tag()
    texts, source = texts_of(found, settings)
    text = text_of(settings)
    shown = stories_of(found, [text], tagged)
    stories = stories_of(found, texts, tagged)
    if len(stories) < 4:
        raise UserError(f"'{source}' has fewer than four stories")
    if not shown:
        raise UserError("the text has fewer than three tokens")
    shown = fitting(found, shown[0], text)
    results, maps = measure(found, stories, shown, settings, asked)
    digest = sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    facts = {"checkpoint": found.identity(), "model": asdict(found.model.config)}
    facts |= {"source": source, "stories": len(stories), "stories_sha256": digest}
    facts |= {"head_stories": min(len(stories), settings.head_stories), "seed": settings.seed}
    results = facts | results
    show(results)
    path = Path(found.out_dir) / "eval" / "interpret"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(f"{path}.json", results)
    storage.write_text(f"{path}.html", page(results, maps, found))
    print(f"\n{path}.html shows all of it: heads, neurons, examples")


def measure(found, stories, shown, settings, asked):
    """(results, the attention maps of the shown Story: of each layer (H, T, T))."""
    model, name = found.model, found.tokenizer
    few = stories[: settings.head_stories]
    others = stories[settings.head_stories :][:WORD_STORIES]
    others = stories if len(others) < len(few) else others  # too few to average a word over
    heads = read_heads(model, few, others, settings)
    facts, rows = read_neurons(model, stories, settings, asked)
    units = [Unit("head", row["layer"], row["head"]) for row in heads]
    units += [Unit("neuron", row["layer"], row["neuron"]) for row in rows]
    lost = losses_without(model, units, few, settings.seed)
    for unit, row in zip(units, [*heads, *rows], strict=True):
        row["loss"] = lost[unit]
    word = lambda i: name.decode([i])  # noqa: E731
    for row in heads:
        row["keys"] = [(word(k), *rest) for k, *rest in row["keys"]]
        row["links"] = [(word(q), word(k), *rest) for q, k, *rest in row["links"]]
    for row in rows:
        for one in row["examples"]:
            one["tokens"] = [word(i) for i in one.pop("ids")]
    tokens = torch.tensor([shown.ids], device=model.wte.weight.device)
    maps = [hooks.attention_maps(model, tokens, i)[0].cpu() for i in range(model.config.n_layer)]
    text = {"tokens": [word(i) for i in shown.ids], "parts": shown.parts}
    results = {"text": text, "heads": heads, "summary": summary(heads)}
    return results | {"neurons": facts, "shown": rows}, maps


if __name__ == "__main__":
    run(main)
