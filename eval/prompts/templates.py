"""Questions of grammar and context from our own sentences, with words to draw.

    prompts = make(640, seed=1)     # at least 640 pairs of each of KINDS
    prompts[0]      # Prompt("grammar", "...", ((" was happy.", " were happy."), ...), "two names")

templates.toml holds sentences with words to draw and a choice, [right|wrong]:

    {girl1} and {boy1} [were|was] happy.
    {girl1} saw that {boy1} [was|were] happy.

{girl1} is drawn from a list of words, {girl2} is another one of it, {dog+} the second form of a
word: a plural or a past. The sentences of a template are one Prompt, with the same words drawn,
and among them each choice is right as often as wrong. So a model that knows only which word is more
usual scores 0.5.
"""

import itertools
import random
import re
import tomllib
from pathlib import Path

from eval.prompts.knowledge_prompts import Prompt

KINDS = ("grammar", "context")
_SLOT = re.compile(r"\{([a-z]+)(\d*)(\+?)\}")
_CHOICE = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")


def read_table(name):
    """The content of a TOML file beside this one, a dict."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def make(count, seed):
    """Prompts of each of KINDS, of every template in turn, with at least `count` pairs a kind."""
    return [one for kind in KINDS for one in of_kind(kind, count, random.Random(seed))]


def of_kind(kind, count, rng):
    """The Prompts of one kind, no two the same, in random order."""
    table, prompts, pairs = read_table("templates.toml"), {}, 0
    templates = [one for one in table["templates"] if one["kind"] == kind]
    if kind == "context":  # minimal_pairs.py has the others
        count -= count // 2
    while pairs < count:
        for template in templates:
            lines = fill(template["sentences"], table["words"], rng).strip().split("\n")
            prompt = as_prompt(kind, lines, template["rule"])
            if prompt not in prompts:
                prompts[prompt] = None
                pairs += len(prompt.pairs)
    mixed = list(prompts)
    rng.shuffle(mixed)
    return mixed


def fill(text, words, rng):
    """A text with a word drawn for each of its slots; words: {list: ["dog|dogs", ...]}."""
    drawn = {}

    def word(match):
        name, number, second = match.groups()
        if (name, number) not in drawn:
            taken = [one for (other, _), one in drawn.items() if other == name]
            drawn[name, number] = rng.choice([one for one in words[name] if one not in taken])
        forms = drawn[name, number].split("|")
        return forms[1] if second else forms[0]

    return _SLOT.sub(word, text)


def as_prompt(kind, lines, rule):
    """The Prompt of sentences with a choice each: their common beginning, and the rest of each."""
    pairs = [tuple(_CHOICE.sub(rf"\{i}", one) for i in (1, 2)) for one in lines]
    chars = zip(*(text for pair in pairs for text in pair), strict=False)
    common = "".join(some[0] for some in itertools.takewhile(lambda some: len({*some}) == 1, chars))
    start = max(common.rfind(" "), 0)  # a token begins with the blank before its word
    return Prompt(kind, common[:start], tuple((a[start:], b[start:]) for a, b in pairs), rule)
