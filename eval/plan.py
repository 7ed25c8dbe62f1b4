"""
What a study consists of: pieces, each a command that leaves a file, and what it needs before.

    plan(settings, {"batch_size": 32, ...})     # settings: eval.study's; and the recipe, train.py's

A size is written width-layers-heads, "64-2-4", and its runs are out/<study>/64-2-4-s1, -s2, ...:
one for each seed; syn-64-2-4-s1 was trained on stories with synonyms, instruct-64-2-4-s1 on
instructions. Every run is asked eval.skills; what costs more, of each size the first seed alone.
"""

import shlex
from dataclasses import dataclass
from typing import NamedTuple

from configs import UserError
from nanostories.training import huggingface

OVERHEAD = 300_000  # parameters that would take as long as what a step costs besides
KNOWN = ("prepare.py", "synonyms.py", "reward.py", "eval.skills", "eval.side_by_side",
         "eval.judge prompts", "eval.judge paper", "eval.judge report", "eval.judge synonyms",
         "eval.judge instruct", "eval.vocabulary", "eval.instruct", "eval.diversity",
         "eval.interpret", "eval.reward")  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """
    A command, the words after `python`. proof: the file that it leaves last of all. needs: names of
    the Pieces before it. weight: about how long it takes, in any unit. run: its run folder, if it
    trains one: then it goes on with --resume.
    """

    name: str
    command: tuple
    proof: str
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
        """Of the blocks, about: 12 layers width^2."""
        return 12 * self.layers * self.width**2


def sizes(text, what):
    """The Sizes in "64-2-4, 128-2-4", each once; UserError, with `what` they are, for others."""
    found = []
    for word in text.replace(",", " ").split():
        numbers = word.split("-")
        if len(numbers) != 3 or not all(n.isdigit() and int(n) for n in numbers):
            raise UserError(f"{what}: '{word}' is no width-layers-heads such as 64-2-4")
        size = Size(*map(int, numbers))
        if size.width % size.heads:
            raise UserError(f"{what}: '{word}' has a width that is no multiple of its heads")
        found.append(size)
    return list(dict.fromkeys(found))


def options(settings, script):
    """The words that the setting `options` has for a script: its line "script: words"."""
    found = {}
    for line in filter(str.strip, settings.options.splitlines()):
        name, colon, words = (part.strip() for part in line.partition(":"))
        if not colon or name in found or name not in KNOWN:
            raise UserError(
                f"options are lines such as 'eval.skills: --questions=100', one for a script, of "
                f"{', '.join(KNOWN)}; not '{line.strip()}'"
            )
        try:
            found[name] = shlex.split(words)
        except ValueError as error:
            raise UserError(f"options: '{line.strip()}': {error}") from None
    return found.get(script, [])


class Plan:
    """Collects the Pieces of a study. folder: out/<study>; data: the folder of plain stories."""

    def __init__(self, settings, recipe):
        self.settings, self.recipe, self.pieces = settings, recipe, {}
        self.folder, self.data = settings.out_dir, settings.dataset

    def add(self, name, command, proof, needs=(), weight=1.0, run=""):
        """Add a Piece, once; returns its name."""
        piece = Piece(name, tuple(command), proof, tuple(needs), weight, run)
        return self.pieces.setdefault(name, piece).name

    # ------------------------------------------------------------------------------------------
    # data and runs

    def prepare(self, kind=""):
        """The data folder of a kind, plain, syn or instruct; (its name as a Piece, its path)."""
        settings, source = self.settings, self.settings.source
        val, out = settings.val_source, f"{self.data}-{kind}" if kind else self.data
        needs, tokenizer = [], self.data
        if not kind:
            tokenizer = settings.tokenizer
        else:  # with the same tokens
            needs = [self.prepare()[0]]
        if kind == "instruct":
            source = settings.instruct_source or f"instruct:{source}"
            val = settings.instruct_val_source or (val and f"instruct:{val}")
        script = "synonyms.py" if kind == "syn" else "prepare.py"
        command = [script, *options(settings, script), f"--source={source}"]
        command += [f"--val_source={val}"] if val else []
        command += [f"--tokenizer={tokenizer}", f"--out={out}"]
        command += [] if kind else [f"--vocab_size={settings.vocab_size}"]
        name = f"data {kind}".strip()
        return self.add(name, command, f"{out}/manifest.json", needs, OVERHEAD), out

    def train(self, size, seed, kind=""):
        """A run; (its name as a Piece, its folder)."""
        data, path = self.prepare(kind)
        out = f"{self.folder}/{kind + '-' if kind else ''}{size}-s{seed}"
        recipe = {name: value for name, value in self.recipe.items() if name not in _OURS}
        words = [f"--{name}={value}" for name, value in recipe.items()]
        words += [f"--dataset={path}", f"--n_embd={size.width}", f"--n_layer={size.layers}"]
        words += [f"--n_head={size.heads}", f"--seed={seed}", f"--out_dir={out}"]
        words += ["--save_steps=log"] if seed == 1 and not kind else []
        name = f"train {out.rpartition('/')[2]}"
        weight = OVERHEAD + size.parameters
        return self.add(name, ["train.py", *words], f"{out}/latest", [data], weight, out), out

    # ------------------------------------------------------------------------------------------
    # evaluations

    def evaluate(self, script, out, needs, words=(), name="", share=0.1, mode=""):
        """
        An evaluation of a run; share: how long it takes, of a small model's training. Returns its
        name.
        """
        proof = f"{out}/eval/{script.rpartition('.')[2]}{mode and '-' + mode}.json"
        name = f"{script} {mode} {name or out.rpartition('/')[2]}".replace("  ", " ")
        words = [*words, *([f"--mode={mode}"] if mode else [])]
        command = ["-m", script, *options(self.settings, f"{script} {mode}".strip()), *words]
        return self.add(name, command, proof, needs, share * OVERHEAD)

    def judge(self):
        """The words that name the judge."""
        settings = self.settings
        return [f"--judge={settings.judge}", f"--base_url={settings.base_url}"]

    def of_size(self, size, seeds):
        """A size of the grid: its runs, and what they are asked."""
        large = 1 + size.parameters / OVERHEAD
        for seed in range(1, seeds + 1):
            trained, out = self.train(size, seed)
            words, share = ([out, "--steps"], 0.5) if seed == 1 else ([out], 0.1)
            self.evaluate("eval.skills", out, [trained], words, share=share * large)
        trained, out = self.train(size, 1)
        rated = self.judge() if self.settings.judge else []
        self.evaluate("eval.judge", out, [trained], [out, *rated], mode="prompts")
        self.evaluate("eval.side_by_side", out, [trained], [out])
        for mode in ("paper", "report") if rated else ():
            self.evaluate("eval.judge", out, [trained], [out, *rated], share=1, mode=mode)

    def of_synonyms(self, size):
        """A size trained on stories with synonyms, beside the plain one."""
        (plain, plain_out), (syn, syn_out) = self.train(size, 1), self.train(size, 1, "syn")
        needs = [plain, syn]
        for out, trained in ((plain_out, plain), (syn_out, syn)) if self.settings.judge else ():
            words = [out, *self.judge()]
            needs.append(self.evaluate("eval.judge", out, [trained], words, mode="synonyms"))
        self.evaluate("eval.vocabulary", syn_out, needs, [plain_out, syn_out], share=0.5)

    def of_instructions(self, size):
        """A size trained on instructions."""
        trained, out = self.train(size, 1, "instruct")
        self.evaluate("eval.instruct", out, [trained], [out], share=0.5)
        if self.settings.judge:
            self.evaluate("eval.judge", out, [trained], [out, *self.judge()], mode="instruct")

    def of_reward(self, size):
        """A model taught by reward, beside the same size trained on instructions, if there is."""
        settings = self.settings
        (trained, base), out = self.train(size, 1), f"{self.folder}/reward-{size}-s1"
        words = [*options(settings, "reward.py"), f"--init_from={base}", f"--out_dir={out}"]
        name = f"reward {size}"
        taught = self.add(
            name, ["reward.py", *words], f"{out}/latest", [trained], 2 * OVERHEAD, out
        )
        needs, words = [taught], [out]
        if size in sizes(settings.instructed, "instructed"):
            told, instruct = self.train(size, 1, "instruct")
            needs, words = [taught, told], [out, f"--instruct={instruct}"]
        words += self.judge() if settings.judge else []
        self.evaluate("eval.reward", out, needs, words, share=0.5)

    def of_rival(self, name, inside):
        """A published model, asked the same; inside: looked into, too."""
        settings, (data, path) = self.settings, self.prepare()
        out, model = huggingface.results_folder(name), f"--init_from={name}"
        rated = self.judge() if settings.judge else []
        words = [model, f"--dataset={path}"]
        self.evaluate("eval.skills", out, [data], words, name, 2)
        self.evaluate("eval.side_by_side", out, [data], words, name, 2)
        self.evaluate("eval.judge", out, [], [model, *rated], name, 2, "prompts")
        if rated:
            self.evaluate("eval.judge", out, [], [model, *rated], name, 4, "paper")
        if inside:
            words = [model, f"--source={settings.val_source or settings.source}"]
            self.evaluate("eval.interpret", out, [], words, name, 9)


# What a recipe may not say: the study does.
_OURS = ("source", "tokenizer", "dataset", "n_embd", "n_layer", "n_head", "seed", "out_dir",
         "save_steps", "resume", "init_from")  # fmt: skip


def plan(settings, recipe):
    """The Pieces of a study, a dict by name, each after what it needs; UserError as `sizes`."""
    made = Plan(settings, recipe)
    for size in sizes(settings.models, "models"):
        made.of_size(size, settings.seeds)
    for size in sizes(settings.heads, "heads"):
        for seed in range(1, settings.seeds + 1):
            trained, out = made.train(size, seed)
            made.evaluate("eval.skills", out, [trained], [out])
    for size in sizes(settings.syn, "syn"):
        made.of_synonyms(size)
    for size in sizes(settings.instructed, "instructed"):
        made.of_instructions(size)
    for size in sizes(settings.diverse, "diverse"):
        trained, out = made.train(size, 1)
        made.evaluate("eval.diversity", out, [trained], [out], share=1)
    for size in sizes(settings.inside, "inside"):
        trained, out = made.train(size, 1)
        made.evaluate("eval.interpret", out, [trained], [out], share=2)
    for size in sizes(settings.rewarded, "rewarded"):
        made.of_reward(size)
    rivals = settings.rivals.replace(",", " ").split()
    looked_into = [name for name in rivals if "gpt2" in name and settings.inside][:1]
    for name in rivals:
        made.of_rival(name, inside=name in looked_into)
    return made.pieces
