"""
Reads a story of storybook.py: the facts that its text states, and what contradicts them.

    check(text)     True for a whole story whose facts hold all through it
    faults(text)    what does not, in plain English
    recount(text)   the Story, as tell() would have it: plot, facts, features, summary

English from outside the grammar is a fault; taste, and where paragraphs break, are not judged.
"""

import re
from functools import cache

from nanostories.dataset.storybook import (
    END,
    MEANS,
    START,
    VARIABLE,
    describe_story,
    split_sentences,
)


@cache
def _regex(notation):
    """A sentence of STORIES as a regex, each slot a group. Any word fits a slot of many words, so
    that faults() can name the one that does not belong."""
    regex = ""
    for part in re.split(r"({.*?}|[][|])", notation):
        said = MEANS.get(part.strip("{}"))
        if said is None:
            regex += {"[": "(?:", "]": ")", "|": "|"}.get(part, re.escape(part))
        elif len(said) > 8:
            regex += "(" + re.sub(r"\w+", "[A-Za-z]+", next(iter(said))) + ")"
        else:
            regex += f"({'|'.join(said if regex else map(str.capitalize, said))})"
    return re.compile(regex)


def _replay(node, groups, facts):
    """(facts after a sentence, contradictions), from what its slots say and the facts before it,
    {variable: value}."""
    facts, wrong, heard = dict(facts), [], []
    for slot, word in zip(node.slots, groups, strict=True):
        if word:  # else it stands in a choice that was not made
            heard.append((MEANS[slot].get(word) or MEANS[slot].get(word.lower(), ()), slot, word))
    for values, slot, word in sorted(heard, key=lambda one: len(one[0])):  # names, then pronouns
        variable = VARIABLE[slot]
        if len(values) == 1 and variable not in facts:
            (facts[variable],) = values
            if variable in "XY" and facts.get("X") == facts.get("Y"):
                wrong.append(f"two children are called {word}")
        elif facts.get(variable) not in values:
            known = f"the story has {facts[variable]}" if variable in facts else "no such word fits"
            wrong.append(f'"{word}" where {known}')
            if "Holds" in node.tags:
                wrong[-1] += ", so who has what in the end is wrong"
    return facts, wrong


def _follow(sentence, readings):
    """
    Carries the readings of a text on by a sentence: {last node: (cost, facts, faults, nodes)}, the
    nodes those it took.
    """
    fits = cache(lambda node: _regex(node.sentence).fullmatch(sentence))
    found, moves = {}, {node: [one for one in node.after if fits(one)] for node in readings}
    for node, (cost, facts, before, path) in readings.items():
        nodes, toll = moves[node], []
        if not nodes:  # leave it out here; and where no reading can go on, jump to where it fits
            nodes = [] if any(moves.values()) else [one for one in node.plot if fits(one)]
            toll = ["out of order" if nodes else "not a sentence of this story"]
            found.setdefault(node, (cost + 2, facts, [*before, f"{toll[0]}: {sentence}"], path))
        for one in nodes:
            known, wrong = _replay(one, fits(one).groups(), facts)
            wrong = [f"{what}: {sentence}" for what in toll + wrong]
            if one not in found or cost + len(wrong) < found[one][0]:
                found[one] = (cost + len(wrong), known, before + wrong, [*path, one])
    least = min(cost for cost, *_ in found.values())
    return {node: reading for node, reading in found.items() if reading[0] < least + 2}


def find_errors(text):
    """What contradicts the facts that a text itself states, in plain English; [] if nothing.

    Every sentence must be one of STORIES, in an order that a plot allows, and names, pronouns,
    objects, what describes them, places and who has what must agree from first to last."""
    return _read(text)[0]


def is_consistent(text):
    """True if a text is a whole story of this grammar whose facts hold all through it."""
    return not find_errors(text)


def parse_story(text):
    """The GeneratedStory of a text, without its `sentence`; None where the text has errors."""
    wrong, facts, nodes = _read(text)
    return None if wrong else describe_story(text, nodes, facts)


def _read(text):
    """(faults, facts, nodes) of the best reading of a text."""
    wrong, readings = [], {START: (0, {}, [], [])}
    if any(line.count('"') % 2 for line in text.splitlines()):
        wrong.append("a quote is left open")
    if not re.search(r'[.!?]"?\s*$', text):
        wrong.append("cut off in mid-sentence" if text.strip() else "no text")
    for sentence in split_sentences(text):
        readings = _follow(sentence, readings)
    for node, (_, _, notes, _) in readings.items():
        if END not in node.after:
            notes.append("unfinished: the story has no ending")
    _, facts, notes, nodes = min(readings.values(), key=lambda reading: len(reading[2]))
    return wrong + notes, facts, nodes
