"""Questions of reasoning and facts: what belongs to what, always of two things at a time.

    prompts = make(640, seed=1)     # at least 640 questions of each of KINDS
    prompts[0]  # Prompt("facts", "", (("The bear lived in a cave.", "The bear lived in a nest."),
                #     ("The bird lived in a nest.", "The bird lived in a cave.")), "home")

relations.toml holds groups of rows, "bear: cave", and sentences that are true of each row and false
of a thing with the value of another row. Two pairs of a Prompt are one question: of two things, is

    log p(both with their own value) > log p(both with the value of the other)?

How frequent a thing or a value is cancels in this difference, so a model that knows only that
scores 0.5. Only what the two have to do with each other is left. A thing is in one Prompt, with
few others of its group: every two of them, in every sentence. So no two Prompts share facts, and an
interval resamples groups, the rules of eval.skills.
"""

import itertools
import random

from eval.prompts.templates import as_prompt, fill, read_table

KINDS = ("reasoning", "facts")
THINGS = 4  # at most, of a Prompt: six questions a sentence


def make(count, seed):
    """Prompts of each of KINDS, with at least `count` questions a kind where there are as many:
    two pairs of a Prompt are one."""
    return [one for kind in KINDS for one in of_kind(kind, count, random.Random(seed))]


def of_kind(kind, count, rng):
    """The Prompts of one kind, in random order."""
    words, prompts = read_table("templates.toml")["words"], []
    for group in read_table("relations.toml")[kind]:
        rows = [tuple(row.split(": ")) for row in group["rows"].strip().split("\n")]
        if group.get("opposites"):
            chunks = [rows[i : i + 2] for i in range(0, len(rows), 2)]
        else:
            rng.shuffle(rows)
            number = -(-len(rows) // THINGS)  # of chunks, nearly equal ones
            chunks = [rows[i::number] for i in range(number)]
        for chunk in chunks:
            lines = both_ways(chunk, group["frames"].strip().split("\n"))
            text = fill("\n".join(lines), words, rng)
            prompts.append(as_prompt(kind, text.split("\n"), group["rule"]))
    rng.shuffle(prompts)
    total = itertools.accumulate(len(one.pairs) // 2 for one in prompts)
    last = next((i for i, pairs in enumerate(total, 1) if pairs >= count), len(prompts))
    return prompts[:last]


def both_ways(rows, frames):
    """Sentences with a choice: of every two rows and every frame, that of one and of the other."""
    return [
        frame.replace("<1>", thing).replace("<2>", f"[{right}|{wrong}]")
        for (a, x), (b, y) in itertools.combinations(rows, 2)
        for frame in frames
        for thing, right, wrong in ((a, x, y), (b, y, x))
    ]
