"""
The jobs of a study: each is a command that leaves an output file, and the jobs it needs first.

    plan_jobs(settings, {"batch_size": 32, ...})     # eval.study's settings, and train.py's recipe

A size is written width-layers-heads, "64-2-4". Its runs are out/<study>/64-2-4-s1, -s2, ..., one
per seed; syn-64-2-4-s1 is trained on stories with synonyms, instruct-64-2-4-s1 on instructions.
eval.skills scores every run; evaluations that cost more take the first seed of each size.
"""

import shlex
from dataclasses import dataclass
from typing import NamedTuple

from configs import UserError
from nanostories.training import huggingface

# A training step takes as long as one of a model with this many more parameters and no overhead.
OVERHEAD = 300_000
SCRIPTS = ("prepare.py", "synonyms.py", "reward.py", "eval.skills", "eval.side_by_side",
           "eval.judge prompts", "eval.judge paper", "eval.judge report", "eval.judge synonyms",
           "eval.judge instruct", "eval.vocabulary", "eval.instruct", "eval.diversity",
           "eval.interpret", "eval.reward")  # fmt: skip
# Settings of train.py that the study sets itself, whatever the recipe says.
SET_BY_STUDY = ("source", "tokenizer", "dataset", "n_embd", "n_layer", "n_head", "seed", "out_dir",
                "save_steps", "resume", "init_from")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """
    One command of a study.

    command: the words after `python`. output: the file that it writes last. needs: names of the
    jobs that come first. weight: about how long it takes, in any unit. run: the run folder that it
    trains, "" for other jobs; a training continues with --resume.
    """

    name: str
    command: tuple
    output: str
    needs: tuple = ()
    weight: float = 1.0
    run: str = ""


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


def sizes(text, setting):
    """The Sizes in "64-2-4, 128-2-4", each once. `setting` is named in the UserError for others."""
    result = []
    for word in text.replace(",", " ").split():
        numbers = word.split("-")
        if len(numbers) != 3 or not all(n.isdigit() and int(n) for n in numbers):
            raise UserError(f"{setting}: '{word}' is not width-layers-heads, such as 64-2-4")
        size = Size(*map(int, numbers))
        if size.width % size.heads:
            raise UserError(f"{setting}: the width of '{word}' is not a multiple of its heads")
        result.append(size)
    return list(dict.fromkeys(result))


def parse_options(text):
    """{script: [words]} of the setting `options`: a line "script: words" for each script."""
    options = {}
    for line in filter(str.strip, text.splitlines()):
        name, colon, words = (part.strip() for part in line.partition(":"))
        if not colon or name in options or name not in SCRIPTS:
            raise UserError(
                f"options are lines such as 'eval.skills: --questions=100', one for each script, "
                f"of {', '.join(SCRIPTS)}; not '{line.strip()}'"
            )
        try:
            options[name] = shlex.split(words)
        except ValueError as error:
            raise UserError(f"options: '{line.strip()}': {error}") from None
    return options


class Model(NamedTuple):
    """What an evaluation takes: its label, its folder, the words that name it, jobs it needs."""

    label: str
    folder: str
    words: tuple
    needs: tuple


class Plan:
    """Collects the jobs of a study, {name: Job}, each after those that it needs."""

    def __init__(self, settings, recipe):
        self.settings, self.jobs = settings, {}
        self.options = parse_options(settings.options)
        self.recipe = [f"--{k}={v}" for k, v in recipe.items() if k not in SET_BY_STUDY]
        self.judge_words = ()
        if settings.judge:
            self.judge_words = (f"--judge={settings.judge}", f"--base_url={settings.base_url}")

    def add(self, name, command, output, needs=(), weight=1.0, run=""):
        """Add a Job, unless there is one of this name; returns the name."""
        job = Job(name, tuple(command), output, tuple(needs), weight, run)
        return self.jobs.setdefault(name, job).name

    def prepare(self, kind=""):
        """Make the data of a kind, "", syn or instruct; returns (name of its job, its folder)."""
        settings, plain = self.settings, self.settings.dataset
        source, val_source = settings.source, settings.val_source
        if kind == "instruct":
            source = settings.instruct_source or f"instruct:{source}"
            val_source = settings.instruct_val_source or (val_source and f"instruct:{val_source}")
        script = "synonyms.py" if kind == "syn" else "prepare.py"
        out = f"{plain}-{kind}" if kind else plain
        command = [script, *self.options.get(script, []), f"--source={source}"]
        command += [f"--val_source={val_source}"] if val_source else []
        # Every kind of data shares the tokenizer of the plain stories.
        command += [f"--tokenizer={plain if kind else settings.tokenizer}", f"--out={out}"]
        command += [] if kind else [f"--vocab_size={settings.vocab_size}"]
        needs = [self.prepare()[0]] if kind else []
        name = f"data {kind}".strip()
        return self.add(name, command, f"{out}/manifest.json", needs, OVERHEAD), out

    def train(self, size, seed=1, kind=""):
        """Train a Model of a size on a kind of data."""
        data, folder = self.prepare(kind)
        label = f"{kind + '-' if kind else ''}{size}-s{seed}"
        out = f"{self.settings.out_dir}/{label}"
        command = ["train.py", *self.recipe, f"--dataset={folder}", f"--n_embd={size.width}"]
        command += [f"--n_layer={size.layers}", f"--n_head={size.heads}", f"--seed={seed}"]
        command += [f"--out_dir={out}", *["--save_steps=log"] * (seed == 1 and not kind)]
        weight = OVERHEAD + size.parameters
        job = self.add(f"train {label}", command, f"{out}/latest", [data], weight, out)
        return Model(label, out, (out,), (job,))

    def reward(self, size):
        """Fine-tune the first run of a size with reinforcement learning."""
        base, label = self.train(size), f"reward-{size}-s1"
        out = f"{self.settings.out_dir}/{label}"
        command = ["reward.py", *self.options.get("reward.py", [])]
        command += [f"--init_from={base.folder}", f"--out_dir={out}"]
        job = self.add(
            f"reward {size}", command, f"{out}/latest", base.needs, 2 * OVERHEAD, run=out
        )
        return Model(label, out, (out,), (job,))

    def evaluate(self, script, model, *words, needs=(), mode="", cost=0.1):
        """
        Evaluate a Model; returns the name of the job.

        needs: further jobs that come first. mode: of eval.judge. cost: how long it takes, as a
        fraction of training a small model.
        """
        output = f"{model.folder}/eval/{script.removeprefix('eval.')}{mode and '-' + mode}.json"
        with_mode = f"{script} {mode}".strip()
        command = ["-m", script, *self.options.get(with_mode, []), *model.words, *words]
        if script in ("eval.judge", "eval.reward"):
            command += self.judge_words
        command += [f"--mode={mode}"] if mode else []
        needs = (*model.needs, *needs)
        return self.add(f"{with_mode} {model.label}", command, output, needs, cost * OVERHEAD)

    def judge(self, model, mode, cost=0.1):
        """Evaluate with eval.judge, if the study has a judge; returns the names of the jobs."""
        if not self.judge_words:
            return []
        return [self.evaluate("eval.judge", model, mode=mode, cost=cost)]


def plan_jobs(settings, recipe):
    """The jobs of a study, {name: Job}, each after those that it needs; UserError as `sizes`."""
    plan, by_setting = Plan(settings, recipe), {}
    for name in ("models", "heads", "syn", "instruct", "diversity", "interpret", "reward"):
        by_setting[name] = sizes(getattr(settings, name), name)
    for size in by_setting["models"]:
        large = 1 + size.parameters / OVERHEAD
        first = plan.train(size)
        plan.evaluate("eval.skills", first, "--steps", cost=0.5 * large)
        for seed in range(2, settings.seeds + 1):
            plan.evaluate("eval.skills", plan.train(size, seed), cost=0.1 * large)
        plan.evaluate("eval.judge", first, mode="prompts")  # without a judge, by probabilities
        plan.evaluate("eval.side_by_side", first)
        plan.judge(first, "paper", cost=1)
        plan.judge(first, "report", cost=1)
    for size in by_setting["heads"]:
        for seed in range(1, settings.seeds + 1):
            plan.evaluate("eval.skills", plan.train(size, seed))
    for size in by_setting["syn"]:
        plain, syn = plan.train(size), plan.train(size, kind="syn")
        needs = [*plain.needs, *plan.judge(plain, "synonyms"), *plan.judge(syn, "synonyms")]
        both = syn._replace(words=(plain.folder, syn.folder))
        plan.evaluate("eval.vocabulary", both, needs=needs, cost=0.5)
    for size in by_setting["instruct"]:
        model = plan.train(size, kind="instruct")
        plan.evaluate("eval.instruct", model, cost=0.5)
        plan.judge(model, "instruct")
    for size in by_setting["diversity"]:
        plan.evaluate("eval.diversity", plan.train(size), cost=1)
    for size in by_setting["interpret"]:
        plan.evaluate("eval.interpret", plan.train(size), cost=2)
    for size in by_setting["reward"]:
        model, words, needs = plan.reward(size), [], []
        if size in by_setting["instruct"]:
            other = plan.train(size, kind="instruct")
            words, needs = [f"--instruct={other.folder}"], other.needs
        plan.evaluate("eval.reward", model, *words, needs=needs, cost=0.5)
    plan_baselines(plan)
    return plan.jobs


def plan_baselines(plan):
    """Evaluate the published models; the first GPT-2 is also compared by its neurons."""
    settings, (data, folder) = plan.settings, plan.prepare()
    names = settings.baselines.replace(",", " ").split()
    gpt2 = next((name for name in names if "gpt2" in name), None)
    for name in names:
        model = Model(name, huggingface.results_folder(name), (f"--init_from={name}",), ())
        dataset = f"--dataset={folder}"
        plan.evaluate("eval.skills", model, dataset, needs=[data], cost=2)
        plan.evaluate("eval.side_by_side", model, dataset, needs=[data], cost=2)
        plan.evaluate("eval.judge", model, mode="prompts", cost=2)
        plan.judge(model, "paper", cost=4)
        if settings.interpret and name == gpt2:
            source = settings.val_source or settings.source
            plan.evaluate("eval.interpret", model, f"--source={source}", cost=9)
