"""Tiny children's stories from a seeded grammar that knows the facts of every story it generates.

    python -m nanostories.dataset.storybook --count=3            three stories, each with its facts
    python -m nanostories.dataset.storybook --count=3 --seed=7   three others

The data of `make story` (no network) and the ground truth of tests. storybook.txt is the whole
grammar, and says how to read it. `generate_story` walks through its sentences at random and fills
them in; storybook_parser.py finds the walk that a text took through the same sentences.
"""

import argparse
import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_, _words, _plots = Path(__file__).with_suffix(".txt").read_text("utf-8").split("\n----\n")
VALUES = {name: words for name, *words in map(str.split, _words.splitlines())}
FEMALE = [*VALUES.pop("GIRL"), "mom", "grandma"]
VALUES["X"] = VALUES["Y"] = FEMALE[:-2] + VALUES.pop("BOY")
PRONOUN_PREFIX = {"X": "", "Y": "Y", "MOM": "M"}  # HE is of X, YHE of Y, MHE of MOM
DESCRIBED = [("ADJ", "TOY"), ("ADJ", "THING"), ("ADJ", "PRIZE"), ("TASTE", "FOOD"),
             ("TASTE", "BAKE"), ("TASTE", "SNACK"), ("FUR", "ANIMAL")]  # fmt: skip
# The first three of these that a story has are its `words`.
WORD_ORDER = "VERB TOY THING PRIZE FOOD BAKE ANIMAL ADJ TASTE FUR SNACK PET GOAL PLACE MOM"


@dataclass(frozen=True)
class GeneratedStory:
    """A story, its facts, and the fields of a TinyStories-Instruct record for it."""

    text: str  # paragraphs separated by a blank line
    plot: str  # its name in storybook.txt
    facts: dict  # characters {name: "he" | "she"}, objects, places, holds {who: what}, ending
    words: list  # two or three main words of the text
    features: list  # those of TinyStories-Instruct's that are true of it
    summary: str  # one sentence
    sentence: str  # one of the text, verbatim, not the first


@dataclass(eq=False)
class Node:
    """A sentence of one plot with one ending, and the nodes that may follow it."""

    template: str = ""  # as storybook.txt has it, its slots in braces
    slots: tuple = ()
    tags: tuple = ()
    paragraph: bool = False  # whether it starts one
    title: tuple = ()  # plot name, ending, who has what, summary
    plot_nodes: list = field(default_factory=list)
    next_nodes: list = field(default_factory=list)


_SENTENCE_END = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]["”]))\s+(?=["“A-Z{])(?!\{M?HE)')


def split_sentences(text):
    """The sentences of a text, list of str. A full stop inside a quote ends one only where the
    quote closes and a capital follows; a line end always does."""
    sentences = []
    for line in text.splitlines():
        closed = True  # no quote is open
        for part in _SENTENCE_END.split(line.strip()):
            sentences += [part] if closed else [f"{sentences.pop()} {part}"]
            straight, opening, closing = (sentences[-1].count(quote) for quote in '"“”')
            closed = straight % 2 == 0 and opening <= closing
    return [sentence for sentence in sentences if sentence]


def _add_plot(title, steps, start, end):
    """Add the nodes of a plot with one ending between two nodes. steps: lines of storybook.txt."""
    plot_nodes, last_nodes = [], [start]
    for mark, step in (line.split(" ", 1) for line in steps):
        if mark != "/":  # a new step follows every alternative of the step before
            before, last_nodes, paragraph = last_nodes, last_nodes * (mark == "?"), mark == "¶"
        previous, tags = before, re.findall(r"#(\w+)", step)
        for i, template in enumerate(split_sentences(re.sub(r" #\w+", "", step))):
            slots = re.findall("{(.*?)}", template)
            node = Node(template, slots, tags, paragraph and i == 0, title, plot_nodes)
            for previous_node in previous:
                previous_node.next_nodes.append(node)
            plot_nodes.append(node)
            previous = [node]
        last_nodes += previous
    for node in last_nodes:
        node.next_nodes.append(end)
    start.plot_nodes += plot_nodes


def _build_graph():
    """(start, end): the plots as a graph of Nodes from before a story to after it."""
    start, end, steps_of = Node(), Node(), {}
    source = re.sub(r"\b(a )?[A-Z]{3,}\b|\bHE\b|\b[XY]\b", r"{\g<0>}", _plots.strip())
    for block in re.split(r"\n+(?=[*=])", source):
        head, *lines = block.splitlines()
        steps = [step for line in lines for step in steps_of.get(line, [line])]
        if head[0] == "*":
            plot = head[2:]
            steps_of[plot] = steps
        else:
            _add_plot((plot, *head[2:].split(" | ")), steps_of[plot] + steps, start, end)
    return start, end


@cache
def _slot_words(variable, value):
    """{slot: word} of a variable's value: ("ADJ", "old") -> {"ADJ": "old", "a ADJ": "an old"}."""
    if variable not in PRONOUN_PREFIX:
        return {variable: value, f"a {variable}": f"a{'n' * (value[0] in 'aeiou')} {value}"}
    words = ("she her her girl" if value in FEMALE else "he him his boy").split()
    slots = [PRONOUN_PREFIX[variable] + slot for slot in ("HE", "HIM", "HIS", "KID")]
    return dict(zip(slots, words, strict=True)) | {variable: value, f"{variable}MY": value.title()}


_CHOICE = re.compile(r"\[([^]]*)\]")
START, END = _build_graph()
VARIABLE_OF_SLOT, SLOT_VALUES = {}, {}  # {slot: variable}, {slot: {word: values that give it}}
for _name, _value in ((name, value) for name in VALUES for value in VALUES[name]):
    for _slot, _word in _slot_words(_name, _value).items():
        VARIABLE_OF_SLOT[_slot] = _name
        SLOT_VALUES.setdefault(_slot, {}).setdefault(_word, set()).add(_value)


def fill_slots(values):
    """{slot: word} for a story's values, {variable: value}."""
    return {slot: word for x in values for slot, word in _slot_words(x, values[x]).items()}


def generate_story(seed):
    """The GeneratedStory of a seed (int >= 0): a pure function of it, equal on every machine."""
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, not {seed}")
    draw = random.Random(2**64 + seed).random  # alone, Random(2**32 + 2) would be Random(2) again

    def pick(choices):
        return choices[int(draw() * len(choices))]

    values = {name: pick(choices) for name, choices in VALUES.items()}
    while values["Y"] == values["X"]:  # no two children of the same name
        values["Y"] = pick(VALUES["Y"])
    nodes, node, words = [], pick(START.next_nodes), fill_slots(values)
    while node is not END:
        nodes.append(node)
        node = pick(node.next_nodes)
    text, sentences = "", []
    for node in nodes:
        template = _CHOICE.sub(lambda choice: pick(choice[1].split("|")), node.template)
        sentence = template.format_map(words)
        sentences.append(sentence[0].upper() + sentence[1:])
        text += ("\n\n" if node.paragraph else " ") + sentences[-1]
    return describe_story(text[1:], nodes, values, pick(sentences[1:]))


def describe_story(text, nodes, values, sentence=""):
    """The GeneratedStory of a text, by the Nodes of its walk and its values, {variable: value}."""
    plot, ending, holds, summary = nodes[0].title
    words, used = fill_slots(values), {VARIABLE_OF_SLOT[slot] for x in nodes for slot in x.slots}
    facts = {
        "characters": {values[x]: words[f"{y}HE"] for x, y in PRONOUN_PREFIX.items() if x in used},
        "objects": [f"{values[x]} {values[y]}" for x, y in DESCRIBED if y in used],
        "places": [values["PLACE"]] if "PLACE" in used else [],
        "holds": dict(part.split(" has ") for part in holds.format_map(words).split(", ")),
        "ending": ending,
    }
    features = {tag for node in nodes for tag in node.tags if tag != "Holds"}
    features |= {"Dialogue"} if '"' in text else set()
    features |= {"BadEnding"} if ending == "bad" else set()
    main_words = [values[name] for name in WORD_ORDER.split() if name in used][:3]
    summary = summary.format_map(words)
    return GeneratedStory(text, plot, facts, main_words, sorted(features), summary, sentence)


def stories(count, seed=0):
    """Yield `count` GeneratedStories. No two seeds (0 to 2**32 - 1) share a story."""
    return (generate_story((seed << 32) + number) for number in range(count))


def main():
    parser = argparse.ArgumentParser(description="Generate stories, each with its facts.")
    parser.add_argument("--count", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other stories")
    args = parser.parse_args()
    for story in stories(args.count, args.seed):
        print(story.text, "\n")
        for name, value in list(vars(story).items())[1:]:
            print(f"{name:>10}: {value}")
        print("-" * 100)


if __name__ == "__main__":
    main()
