"""The jobs of a study: each is a command that leaves an output file, and the jobs it needs first.

    plan_jobs(settings, {"batch_size": 32, ...})     # eval.study's settings, and train.py's recipe

A size is written width-layers-heads, "64-2-4". Its runs are out/<study>/64-2-4-s1, -s2, ..., one
per seed; syn-64-2-4-s1 is trained on stories with synonyms, instruct-... on instructions, ood-...
on those without `hold_out` together, table1-... by the student report's table 1; reward-... is
fine-tuned with a reward, naive-... by the report's first method; the kinds of ARCHITECTURES and
CORPORA differ from the plain run in one thing. eval.skills scores every run; evaluations that cost
more take the first seed of each size.
"""

import functools
import itertools
import re
import shlex
from dataclasses import dataclass
from typing import NamedTuple

from configs import UserError, explained
from eval import published
from model import GPT, GPTConfig, WithoutWeights
from nanostories.training import huggingface

# A training step takes as long as one of a model with this many more parameters and no overhead.
OVERHEAD = 300_000
# Evaluations of the first run of each size in a setting: (setting, kind of the data, cost as a
# fraction of training a small model).
EVALUATIONS = {
    "eval.judge prompts": ("models", "", 0.1),  # without a judge, by probabilities
    "eval.judge slides": ("models", "", 0.1),
    "eval.side_by_side": ("models", "", 0.1),
    "eval.judge paper": ("models", "", 1),
    "eval.judge report": ("models", "", 1),
    "eval.judge instruct": ("instruct", "instruct", 0.1),
    "eval.diversity": ("diversity", "", 1),
    "eval.fluency steps": ("diversity", "", 1),
    "eval.interpret": ("interpret", "", 2),
}
FURTHER = ("eval.skills", "eval.fluency", "eval.loss", "eval.instruct", "eval.judge synonyms",
           "eval.vocabulary", "eval.reward")  # fmt: skip
# {evaluation: the name of its result file, in the folder eval of a run}
RESULTS = {script: script.removeprefix("eval.").replace(" ", "-")
           for script in (*EVALUATIONS, *FURTHER)}  # fmt: skip
# {kind: (what it has in place of the plain model's, the fields of model.GPTConfig that say so)}
ARCHITECTURES = {
    "rope": ("rotary positions", {"positions": "rope"}),
    "swiglu": ("SwiGLU", {"mlp": "swiglu"}),
    "relu2": ("ReLU squared", {"mlp": "relu2"}),
    "untied": ("an output head of its own", {"tied_head": False}),
}
# {kind: (what it reads in place of the plain stories, the setting or the name of its source)}
CORPORA = {
    "v1": ("TinyStories V1", "v1_source"),
    "v2": ("TinyStories V2", "v2_source"),
    "syn": ("synonyms in half of the stories", "source"),
    "storybook": ("made-up stories of storybook.py", "storybook"),
    "once": ("twice as many stories, seen once", "source"),
    "twice": ("half as many stories, seen twice", "source"),
}
# What the kinds of CORPORA are compared with: the other one that has read as many tokens.
COUNTERPARTS = {"v1": "v2", "syn": "", "storybook": "", "twice": "once"}
VOCAB_SIZES = {"gpt2": 50_257, "gpt2-10k": 10_000, "bytes": 257}  # others are in the settings
SCRIPTS = ("prepare.py", "synonyms.py", "reward.py", *RESULTS)  # that take options, and
# "train.py 64" of a width, "train.py 64-4-2" of a size, "train.py v1", "prepare.py v1" of a kind
SPECIAL = rf"train\.py \d+(-\d+-\d+)?|(train|prepare)\.py ({'|'.join(CORPORA)})"
# The report's first method: a reward for the mean of all sentences, without a KL penalty or guards.
NAIVE = ("--method=naive", "--kl_factor=0", "--top_sentences=0", "--max_similarity=1",
         "--repetition_penalty=0", "--min_words=0")  # fmt: skip
# Settings of train.py that the study sets itself, whatever the recipe says.
SET_BY_STUDY = ("source", "tokenizer", "dataset", "n_embd", "n_layer", "n_head", "seed", "out_dir",
                "save_steps", "resume", "init_from")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One command of a study."""

    name: str
    command: tuple  # the words after `python`
    output: str  # the file that it writes last
    needs: tuple = ()  # names of the jobs that come first
    weight: float = 1.0  # about how long it takes, in any unit
    run: str = ""  # the run folder that it trains and can --resume, "" for other jobs


class Size(NamedTuple):
    """The shape of a model."""

    width: int
    layers: int
    heads: int

    def __str__(self):
        return "-".join(map(str, self))

    @property
    def parameters(self):
        """Parameters of the blocks, about 12 layers width^2."""
        return 12 * self.layers * self.width**2


def listed(text):
    """The words of a setting, with commas or blanks between them."""
    return text.replace(",", " ").split()


def sizes(text, setting):
    """The Sizes in "64-2-4, 128-2-4", each once. `setting` is named in the UserError for others."""
    result = []
    for word in listed(text):
        if not re.fullmatch(r"[1-9]\d{0,4}(-[1-9]\d{0,2}){2}", word, re.ASCII):
            raise UserError(f"{setting}: '{word}' is not width-layers-heads, such as 64-2-4")
        size = Size(*map(int, word.split("-")))
        if size.width % size.heads:
            raise UserError(f"{setting}: the width of '{word}' is not a multiple of its heads")
        result.append(size)
    return list(dict.fromkeys(result))


def parse_options(text):
    """{script: [words]} of the setting `options`: a line "script: words" for each script."""
    options = {}
    for line in filter(str.strip, text.splitlines()):
        name, colon, words = (part.strip() for part in line.partition(":"))
        known = name in SCRIPTS or re.fullmatch(SPECIAL, name, re.ASCII)
        if not colon or name in options or not known:
            raise UserError(
                f"options are lines such as 'eval.skills: --questions=100', one for each script, "
                f"of {', '.join(SCRIPTS)}, train.py <width, size or kind>, prepare.py <kind>; not "
                f"'{line.strip()}'"
            )
        with explained(f"options: '{line.strip()}': ", ValueError):
            options[name] = shlex.split(words)
    return options


def vocab_size_of(settings):
    """The number of tokens of a study's tokenizer, before it is made."""
    return VOCAB_SIZES.get(settings.tokenizer, settings.vocab_size)


@functools.cache
def equal_width(size, kind, vocab_size, block_size):
    """The width at which a model of one of ARCHITECTURES has the number of parameters nearest to
    that of the plain model of a Size; each head keeps an even number of channels."""

    def parameters(width, **fields):
        with WithoutWeights():
            config = GPTConfig(vocab_size, block_size, size.layers, size.heads, width, **fields)
            return GPT(config).num_params()

    step, target = 2 * size.heads, parameters(size.width)
    widths = range(max(step, size.width // 2 // step * step), 2 * size.width, step)
    fields = ARCHITECTURES[kind][1]
    return min(widths, key=lambda width: abs(parameters(width, **fields) - target))


class Model(NamedTuple):
    """What an evaluation takes."""

    label: str
    folder: str
    words: tuple  # that name it on a command line
    needs: tuple  # names of jobs


class Plan:
    """Collects the jobs of a study, {name: Job}, each after those that it needs."""

    def __init__(self, settings, recipe):
        self.settings, self.jobs = settings, {}
        self.options = parse_options(settings.options)
        self.recipe = {k: v for k, v in recipe.items() if k not in SET_BY_STUDY}
        judge = (f"--judge={settings.judge}", f"--base_url={settings.base_url}")
        self.judge = judge if settings.judge else ()

    def add(self, name, command, output, needs=(), weight=1.0, run=""):
        """Add a Job, unless there is one of this name; returns the name."""
        job = Job(name, tuple(command), output, tuple(needs), weight, run)
        return self.jobs.setdefault(name, job).name

    def prepare(self, kind=""):
        """Make the data of a kind, "", instruct, ood or of CORPORA; returns (name of its job,
        folder)."""
        settings, plain = self.settings, self.settings.dataset
        name = CORPORA.get(kind, ("", "source"))[1]
        source, val_source = getattr(settings, name, name), settings.val_source
        if kind in ("instruct", "ood"):
            source = settings.instruct_source or f"instruct:{source}"
            val_source = settings.instruct_val_source or (val_source and f"instruct:{val_source}")
        script, out = "synonyms.py" if kind == "syn" else "prepare.py", f"{plain}-{kind}".strip("-")
        command = [script, *self.options.get(script, []), f"--source={source}"]
        command += [f"--val_source={val_source}"] if val_source else []
        # Every kind of data shares the tokenizer of the plain stories.
        command += [f"--tokenizer={plain if kind else settings.tokenizer}", f"--out={out}"]
        command += [] if kind else [f"--vocab_size={settings.vocab_size}"]
        command += self.options.get(f"prepare.py {kind}", [])
        if kind == "ood":
            command.append(f"--hold_out={settings.hold_out}")
            out += f"-without-{settings.hold_out}"
        needs = [self.prepare()[0]] if kind else []
        name, output = f"data {kind}".strip(), f"{out}/manifest.json"
        return self.add(name, command, output, needs, OVERHEAD), out

    def train(self, size, seed=1, kind=""):
        """Train a Model of a size and kind; of kinds reward and naive, fine-tune the plain one."""
        label = f"{kind}-{size}-s{seed}".strip("-")
        out = f"{self.settings.out_dir}/{label}"
        if kind in ("reward", "naive"):
            base, name, weight = self.train(size, seed), f"{kind} {size}", 2 * OVERHEAD
            needs, options = base.needs, self.options.get("reward.py", [])
            options = [*options, *NAIVE] if kind == "naive" else options
            command = ["reward.py", *options, f"--init_from={base.folder}", f"--out_dir={out}"]
        else:
            stories = "" if kind == "table1" or kind in ARCHITECTURES else kind
            data, folder = self.prepare(stories)
            needs, name, weight = [data], f"train {label}", OVERHEAD + size.parameters
            command = ["train.py", *self.recipe_of(size, kind), f"--dataset={folder}"]
            command += [f"--n_layer={size.layers}", f"--n_head={size.heads}", f"--seed={seed}"]
            command += [f"--out_dir={out}", *["--save_steps=log"] * (seed == 1 and not kind)]
        job = self.add(name, command, f"{out}/latest", needs, weight, out)
        return Model(label, out, (out,), (job,))

    def recipe_of(self, size, kind):
        """The settings of train.py for a size and kind, but for its data, depth and seed."""
        recipe = self.recipe | (published.TABLE_1 if kind == "table1" else {})
        words = [f"--{k}={v}" for k, v in recipe.items()]
        if kind != "table1":
            for one in (size.width, size, kind):
                words += self.options.get(f"train.py {one}", [])
        if kind not in ARCHITECTURES:
            return [*words, f"--n_embd={size.width}"]
        vocab_size = vocab_size_of(self.settings)
        width = equal_width(size, kind, vocab_size, int(recipe.get("block_size", 512)))
        fields = ARCHITECTURES[kind][1]
        return [*words, *(f"--{k}={v}" for k, v in fields.items()), f"--n_embd={width}"]

    def evaluate(self, script, model, *words, needs=(), cost=0.1, beside=None):
        """Evaluate a Model; returns [the name of the job], or [] for one that only a judge can do.

        script: of RESULTS. cost: as in EVALUATIONS. needs: further jobs that come first. beside:
        another Model, evaluated with it."""
        module, _, mode = script.partition(" ")
        if mode == "slides":  # the knowledge tables, of other prompts
            mode, words = "prompts", (*words, "--prompts=slides")
        if mode == "steps":  # along training
            mode, words = "", (*words, "--steps")
        if module == "eval.judge" and mode != "prompts" and not self.judge:
            return []
        output = f"{model.folder}/eval/{RESULTS[script]}.json"
        if beside:
            words, needs = (*words, f"--beside={beside.folder}"), (*needs, *beside.needs)
            output = output.replace(".json", f"-beside-{beside.label}.json")
        command = ["-m", module, *self.options.get(script, []), *model.words, *words]
        command += self.judge if module in ("eval.judge", "eval.reward") else ()
        command += [f"--mode={mode}"] if mode else []
        name, needs = f"{script} {model.label}", (*model.needs, *needs)
        return [self.add(name, command, output, needs, cost * OVERHEAD)]


def plan_jobs(settings, recipe):
    """The jobs of a study, {name: Job}, each after those that it needs; UserError as `sizes`."""
    names = ("models", "heads", "syn", "instruct", "ood", "reward", "table1")
    plan, chosen = Plan(settings, recipe), (sizes(getattr(settings, x), x) for x in names)
    models, heads, syn, instruct, ood, reward, table1 = chosen
    pair = f"--pair={settings.hold_out}"
    seeds = range(1, settings.seeds + 1)
    for size in [*models, *heads]:
        large = 1 + size.parameters / OVERHEAD
        for seed in seeds:
            model = plan.train(size, seed)
            if seed == 1 and size in models:
                plan.evaluate("eval.skills", model, "--steps", cost=0.5 * large)
            plan.evaluate("eval.skills", model, cost=0.1 * large)
            if size in models:
                plan.evaluate("eval.fluency", model, cost=0.3 * large)
    for script, (setting, kind, cost) in EVALUATIONS.items():
        for size in sizes(getattr(settings, setting), setting):
            plan.evaluate(script, plan.train(size, kind=kind), cost=cost)
    for size in instruct:
        for seed in seeds:
            plan.evaluate("eval.instruct", plan.train(size, seed, "instruct"), pair, cost=0.5)
    for size in syn:
        plain, other = plan.train(size), plan.train(size, kind="syn")
        grades = [job for x in (plain, other) for job in plan.evaluate("eval.judge synonyms", x)]
        both = other._replace(words=(plain.folder, other.folder))
        plan.evaluate("eval.vocabulary", both, needs=[*plain.needs, *grades], cost=0.5)
    for size in reward:
        model, words, needs = plan.train(size, kind="reward"), [], []
        if size in instruct:
            other = plan.train(size, kind="instruct")
            words, needs = [f"--instruct={other.folder}"], other.needs
        plan.evaluate("eval.reward", model, *words, needs=needs, cost=0.5)
        plan.evaluate("eval.reward", plan.train(size, kind="naive"), cost=0.5)
    for size in ood:
        control = plan.train(size, kind="instruct")
        plan.evaluate("eval.instruct", plan.train(size, kind="ood"), pair, beside=control)
    for size in table1:
        plan.evaluate("eval.skills", plan.train(size, kind="table1"))
    plan_variants(plan, seeds)
    plan_baselines(plan)
    return plan.jobs


def plan_variants(plan, seeds):
    """Train and evaluate what differs from a plain model in one thing: all on the plain data."""
    settings = plan.settings
    for size in sizes(settings.architectures, "architectures"):
        for kind, seed in itertools.product(ARCHITECTURES, seeds):
            for script in ("eval.skills", "eval.fluency"):
                plan.evaluate(script, plan.train(size, seed, kind), cost=0.3)
    held_out = f"--dataset={settings.dataset}"
    for size in sizes(settings.corpora, "corpora"):
        for kind, seed in itertools.product(("", *CORPORA), seeds):
            model = plan.train(size, seed, kind)
            plan.evaluate("eval.loss", model, held_out, cost=0.2)
            plan.evaluate("eval.skills", model, *[held_out] * bool(kind), cost=0.3)


def plan_baselines(plan):
    """Evaluate the published models; the first GPT-2 is also compared by its neurons."""
    settings, (data, folder) = plan.settings, plan.prepare()
    names = listed(settings.baselines)
    for name in names:
        model = Model(name, huggingface.results_folder(name), (f"--init_from={name}",), ())
        for script in ("eval.skills", "eval.side_by_side"):
            plan.evaluate(script, model, f"--dataset={folder}", needs=[data], cost=2)
        plan.evaluate("eval.judge prompts", model, cost=2)
        plan.evaluate("eval.judge paper", model, cost=4)
        if settings.interpret and name == next((x for x in names if "gpt2" in x), None):
            source = settings.val_source or settings.source
            plan.evaluate("eval.interpret", model, f"--source={source}", cost=9)
