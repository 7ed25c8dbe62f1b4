"""Six skills without a judge: does a model prefer what is right?

    python -m eval.skills out/ts_33m
    python -m eval.skills out/ts_33m --steps             # its earlier checkpoints, too
    python -m eval.skills --init_from=gpt2 --dataset=data/tinystories-gpt2

Each question is a prompt with a right and a wrong continuation, so chance answers half of them:

    consistency, plot, context     held-out stories with one thing broken (minimal_pairs.py)
    grammar, context               our own sentences with words to draw (templates.py)
    reasoning, facts               what belongs to what, both ways (relations.py)

    margin = log p(right | prompt) - log p(wrong | prompt), in nats

The answer is correct where the margin is above 0; in reasoning and facts, where the mean of the
margins of both ways is. A judge's grades say what a reader thinks of a story; these scores say what
the model knows, by hundreds of questions, the same ones for every model. Questions that share words
or facts are one prompt. Intervals are 95 % bootstrap intervals over prompts, of grammar, reasoning
and facts over rules. Results are in eval/skills.json of the run, with the score of each prompt or
rule.
"""

import itertools
from dataclasses import dataclass
from hashlib import sha256

from configs import UserError, load, run
from eval import bootstrap, harness
from eval.prompts import minimal_pairs, relations, templates
from nanostories.training import checkpoint

KINDS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")
BY_RULE = ("grammar", *relations.KINDS)  # what is true of one rule need not be so of the next
# Earlier checkpoints are asked one of so many Prompts: these are long, and no claim needs more.
STEPS_STRIDE = dict.fromkeys(KINDS, 1) | {"plot": 4, "context": 4}


@dataclass(frozen=True)
class Settings(harness.ModelSettings):
    dataset: str = ""  # a data folder, for its held-out stories; default: the run's
    stories: int = 5000  # the first so many of them are what questions are made from
    questions: int = 640  # of each kind, where there are as many
    steps: bool = False  # every checkpoint that the run has kept, too
    first_step: int = 0  # of these, from this one on: the very first have learned nothing
    seed: int = 1337  # of the questions and the intervals


def main():
    settings, origin = load(Settings, positional="out_dir")
    (loaded,) = harness.open_models(settings, origin)
    if settings.steps and not loaded.is_run():
        raise UserError("steps are those of a run: name its folder")
    source, seed = settings.dataset or checkpoint.data_folder(loaded), settings.seed
    texts = list(itertools.islice(harness.val_texts(source), settings.stories))
    questions = make(texts, settings.questions, seed)
    prompts = fitting(questions, loaded)
    if too_long := len(questions) - len(prompts):
        print(f"{too_long} of {len(questions)} prompts are too long for this model, and left out")
    scores, identity = score(loaded, prompts), repr([(prompt.kind, prompt) for prompt in prompts])
    results = {
        "checkpoint": loaded.identity(), "source": source, "seed": seed, "too_long": too_long,
        "questions_sha256": sha256(identity.encode("utf-8", "surrogatepass")).hexdigest(),
        "questions": {kind: count(prompts, kind) for kind in scores},
        **summary(scores, seed),
    }  # fmt: skip
    harness.print_table(
        ["", "prompts", "questions", "accuracy", "margin, nats"],
        [[kind, row["margin"]["n"], results["questions"][kind], *row.values()]
         for kind, row in results["skills"].items()],
    )  # fmt: skip
    if settings.steps:
        results["checkpoints"] = score_checkpoints(loaded, thinned(prompts), settings)
        print()
        harness.print_table(["step", *scores], [
            [str(row["step"]), *(row["skills"][kind]["accuracy"]["mean"] for kind in scores)]
            for row in results["checkpoints"]
        ])  # fmt: skip
    harness.write_result(loaded.out_dir, "skills", results)


def make(texts, count, seed):
    """The Prompts of `count` questions of each of KINDS, from a list of stories and our tables."""
    makers = (minimal_pairs.make(texts, count, seed), templates.make(count, seed))
    made = itertools.chain(*makers, relations.make(count, seed))
    return sorted(made, key=lambda prompt: KINDS.index(prompt.kind))


def thinned(prompts):
    """Of the Prompts of each kind, one of STEPS_STRIDE."""
    by_kind = {kind: [one for one in prompts if one.kind == kind] for kind in KINDS}
    return [one for kind, some in by_kind.items() for one in some[:: STEPS_STRIDE[kind]]]


def count(prompts, kind):
    """The number of questions of a kind."""
    pairs = sum(len(one.pairs) for one in prompts if one.kind == kind)
    return pairs // 2 if kind in relations.KINDS else pairs


def fitting(prompts, loaded):
    """Those of the Prompts that a LoadedModel can read to the end of each continuation."""
    encode, block_size = loaded.tokenizer.encode, loaded.model.config.block_size

    def length(prompt):
        longest = max(len(encode(text)) for pair in prompt.pairs for text in pair)
        return len(loaded.encode_prompt(prompt.text)) + longest

    return [prompt for prompt in prompts if length(prompt) <= block_size]


def score(loaded, prompts):
    """{kind: margin_scores of its Prompts} of a LoadedModel; in BY_RULE those of a rule are one."""
    margins, by_kind = harness.log_likelihood_margins(loaded, prompts), {kind: {} for kind in KINDS}
    for prompt, pairs in zip(prompts, margins, strict=True):
        if prompt.kind in relations.KINDS:
            pairs = [sum(two) / 2 for two in zip(pairs[::2], pairs[1::2], strict=True)]
        rows = by_kind[prompt.kind]
        which = prompt.rule if prompt.kind in BY_RULE else len(rows)
        rows.setdefault(which, []).extend(pairs)
    return {kind: harness.margin_scores(rows.values()) for kind, rows in by_kind.items() if rows}


def summary(scores, seed):
    """Of what `score` returns, "skills": {kind: {"accuracy", "margin": intervals}}, and "correct":
    {kind: the accuracy of each prompt}."""
    skills = {
        kind: {name: bootstrap.mean(values, seed) for name, values in score.items()}
        for kind, score in scores.items()
    }
    correct = {kind: score["accuracy"].tolist() for kind, score in scores.items()}
    return {"skills": skills, "correct": correct}


def score_checkpoints(loaded, prompts, settings):
    """[{"step", "tokens"} and `summary`] of a run's checkpoints from first_step on, in order."""
    rows, device = [], loaded.model.wte.weight.device
    for step in (x for x in checkpoint.steps_of(loaded.out_dir) if x >= settings.first_step):
        which = f"checkpoints/{step}"
        scores = score(checkpoint.load_run(loaded.out_dir, which, device), prompts)
        tokens = checkpoint.read_state(loaded.out_dir, which)["tokens"]
        rows.append({"step": step, "tokens": tokens, **summary(scores, settings.seed)})
    return rows


if __name__ == "__main__":
    run(main)
