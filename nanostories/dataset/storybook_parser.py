"""Reads a story of storybook.py: the facts that its text states, and what contradicts them.

    find_errors(text)    what is wrong, in plain English; [] for a complete, consistent story
    parse_story(text)    the GeneratedStory of such a text: plot, facts, features, summary

A sentence that the grammar does not have is an error. Whether a story makes sense, and where its
paragraphs break, is not judged.
"""

import re
from functools import cache

from nanostories.dataset import storybook
from nanostories.dataset.storybook import SLOT_VALUES


@cache
def _template_regex(template):
    """A sentence of the grammar as a regex, each slot a group. Any word fits a slot of many words,
    so that find_errors() can name the one that is wrong."""
    regex = ""
    for part in re.split(r"({.*?}|[][|])", template):
        words = SLOT_VALUES.get(part.strip("{}"))
        if words is None:
            regex += {"[": "(?:", "]": ")", "|": "|"}.get(part, re.escape(part))
        elif len(words) > 8:
            regex += "(" + re.sub(r"\w+", "[A-Za-z]+", next(iter(words))) + ")"
        else:
            regex += f"({'|'.join(words if regex else map(str.capitalize, words))})"
    return re.compile(regex)


def _update_values(node, words, values):
    """({variable: value} after a sentence, errors), by its slots' words and the values before."""
    values, errors, read = dict(values), [], []
    for slot, word in zip(node.slots, words, strict=True):
        if word:  # else the slot is in a choice that was not taken
            known = SLOT_VALUES[slot]
            read.append((known.get(word) or known.get(word.lower(), ()), slot, word))
    for fitting, slot, word in sorted(read, key=lambda item: len(item[0])):  # pronouns after names
        variable = storybook.VARIABLE_OF_SLOT[slot]
        if len(fitting) == 1 and variable not in values:
            (values[variable],) = fitting
            if variable in "XY" and values.get("X") == values.get("Y"):
                errors.append(f"two children are called {word}")
        elif values.get(variable) not in fitting:
            has = f"the story has {values[variable]}" if variable in values else "no such word fits"
            end = ", so who has what in the end is wrong" if "Holds" in node.tags else ""
            errors.append(f'"{word}" where {has}{end}')
    return values, errors


def _advance(sentence, readings):
    """The `readings` of a text, see _read, after its next sentence."""
    match = cache(lambda node: _template_regex(node.template).fullmatch(sentence))
    advanced = {}
    following = {node: [one for one in node.next_nodes if match(one)] for node in readings}
    for node, (cost, values, errors, nodes) in readings.items():
        candidates, penalty = following[node], []
        if not candidates:  # skip the sentence; where every reading is stuck, also jump to a match
            if not any(following.values()):
                candidates = [one for one in node.plot_nodes if match(one)]
            penalty = ["out of order" if candidates else "not a sentence of this story"]
            skipped = [*errors, f"{penalty[0]}: {sentence}"]
            advanced.setdefault(node, (cost + 2, values, skipped, nodes))
        for one in candidates:
            new_values, wrong = _update_values(one, match(one).groups(), values)
            wrong = [f"{error}: {sentence}" for error in penalty + wrong]
            if one not in advanced or cost + len(wrong) < advanced[one][0]:
                advanced[one] = (cost + len(wrong), new_values, errors + wrong, [*nodes, one])
    lowest = min(cost for cost, *_ in advanced.values())
    return {node: reading for node, reading in advanced.items() if reading[0] < lowest + 2}


def _read(text):
    """(errors, values, nodes) of the best reading of a text. Readings are {last node: (cost,
    {variable: value}, errors, nodes)}; those that cost little more than the best are kept, as later
    sentences may show which is right."""
    errors, readings = [], {storybook.START: (0, {}, [], [])}
    if any(line.count('"') % 2 for line in text.splitlines()):
        errors.append("a quote is left open")
    if not re.search(r'[.!?]"?\s*$', text):
        errors.append("cut off in mid-sentence" if text.strip() else "no text")
    for sentence in storybook.split_sentences(text):
        readings = _advance(sentence, readings)
    for node, reading in readings.items():
        if storybook.END not in node.next_nodes:
            reading[2].append("unfinished: the story has no ending")
    _, values, others, nodes = min(readings.values(), key=lambda reading: len(reading[2]))
    return errors + others, values, nodes


def find_errors(text):
    """What contradicts the facts that a text states, list of str. Every sentence must be one of the
    grammar, in an order that a plot allows; names, pronouns, objects, adjectives, places and who
    has what must agree from first to last."""
    return _read(text)[0]


def parse_story(text):
    """The GeneratedStory of a text, without its `sentence`; None where the text has errors."""
    errors, values, nodes = _read(text)
    return None if errors else storybook.describe_story(text, nodes, values)
