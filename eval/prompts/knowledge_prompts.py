"""Prompts that test what a model knows, with right and wrong continuations of them.

    paper()                  the paper's 24: context tracking, reasoning, facts
    paper("slides")          the two that the talk about the paper opens with
    made(200, seed=1)        for models of storybook.py: facts of its own stories

The right and the wrong continuation of a pair differ as little as possible: "... She reached into
the bag again and took": " the carrot", " the apple".

The prompts in knowledge.txt are those of the paper's tables of completions (Eldan & Li 2023,
figures 9 to 11; the student report has 18 of them), those in slides.txt are of slides of a talk
about it, cited as data; the continuations below each, right|wrong, are ours.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from nanostories.dataset import storybook

KINDS = {
    "context": "whether it keeps track of the persons and things of the text",
    "reasoning": "elementary reasoning: cause and effect, alternatives, elimination",
    "facts": "knowledge that every child has",
}


@dataclass(frozen=True)
class Prompt:
    """A beginning, what it tests (one of KINDS), and (right, wrong) continuations of it. rule: how
    the two differ, for prompts that are made by one."""

    kind: str
    text: str
    pairs: tuple
    rule: str = ""


def paper(name="knowledge"):
    """The paper's prompts: 6 of context, 9 of reasoning, 9 of facts; or those of "slides"."""
    prompts = []
    for block in Path(__file__).with_name(f"{name}.txt").read_text("utf-8").split("\n\n"):
        first, *lines = block.splitlines()
        kind, _, text = first.partition(": ")
        pairs = (line.removeprefix(">").split("|") for line in lines)
        prompts.append(Prompt(kind, text, tuple(map(tuple, pairs))))
    return prompts


def made(count, seed):
    """Prompts of kind context from storybook.py's stories, one of each: it ends before a name or a
    thing that the story has mentioned; the wrong one is another of its kind, new to the story."""
    rng, prompts = random.Random(seed), []
    kinds = [words for name, words in storybook.VALUES.items() if name != "Y"]
    # Stories that mention nothing again are skipped, so twice as many are generated.
    for story in storybook.stories(2 * count, seed):
        text, seen, places = story.text, set(), []
        for match in re.finditer(r"(?<= )\w+\b", text):
            matching = [words for words in kinds if match[0] in words]
            if match[0] in seen and len(matching) == 1:
                places.append((match, matching[0]))
            seen.add(match[0])
        if not places:
            continue
        match, words = rng.choice(places)
        wrong = rng.choice([word for word in words if not re.search(rf"\b{word}", text)])
        pair = (f" {match[0]}", f" {wrong}")
        prompts.append(Prompt("context", text[: match.start() - 1], (pair,)))
    return prompts[:count]
