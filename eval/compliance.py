"""
Does a story do what its instruction asks? Checked by program, no judge needed.

    checks(record, story)     {check: 0 to 1} for each thing that the instruction asks
    complies(checks)          whether all of it is done

    words       the share of the asked words that the story uses, in any inflection
    sentence    the asked sentence stands in it, word for word and whole
    dialogue    asked for dialogue, somebody speaks
    ending      asked for a bad ending, it ends badly
    summary     recall (1 - copied): the share of the summary's content words that the story uses,
                less where it says the summary's own 5-grams again

Where the true story is one of storybook.py's, the told one is read back and compared with it:
`features`, all that were asked for; `characters`, those that the instruction names; `holds`, who
has what in the end, where a summary is given. One that contradicts itself has none of them.
"""

import re
from functools import cache

from nanostories.dataset import instruct, storybook_parser
from nanostories.dataset.storybook import VALUES, split_sentences
from nanostories.text.words import contains_word, lemmas, ngrams, split_words, unique_content_words

NAMES = (
    "words", "sentence", "dialogue", "ending", "summary", "features", "characters", "holds",
)  # fmt: skip
ENOUGH = 0.5  # of `summary`, to count as told: a plot is told in other words than its summary

_GOOD = "happy glad proud smile laugh hug love friend fun thank safe joy enjoy good best"
_BAD = """sad cry tear never lose lost alone lonely angry hurt die dead gone scared afraid sorry
    break broken empty bad dark late cross lie nobody"""
GOOD, BAD = frozenset(_GOOD.split()), frozenset(_BAD.split())
_SLOTS = {word for values in VALUES.values() for word in values}


def complies(found):
    """Whether what `checks` found is all done."""
    return all(value >= (ENOUGH if name == "summary" else 1) for name, value in found.items())


def checks(record, story):
    """
    What of an instruction is done in a story: {one of NAMES: 0 to 1}, only what is asked.

    record: an instruct.Record; its own story, where it has one, tells whether storybook's exact
    checks apply. story: the text to judge, a str.
    """
    asked = record.entries("features")
    said = split_words(story)
    found = {}
    if words := [word for word in record.entries("words") if split_words(word)]:
        found["words"] = sum(contains_word(word, said) for word in words) / len(words)
    if sentences := record.values("sentence"):
        found["sentence"] = sum(stands_in(one, story) for one in sentences) / len(sentences)
    if "Dialogue" in asked:
        found["dialogue"] = float(instruct.has_dialogue(story))
    if "BadEnding" in asked:
        found["ending"] = float(ends_badly(story))
    if summaries := record.values("summary"):
        found["summary"] = sum(told(one, story) for one in summaries) / len(summaries)
    true = _recount(record.story)
    return found | (_exact(record, true, _recount(story)) if true else {})


def stands_in(sentence, story):
    """Whether the sentence stands in the story word for word, and is a whole sentence there."""
    return any(
        _begins(story[: found.start()]) and _ends(sentence, story[found.end() :])
        for found in re.finditer(re.escape(sentence), story)
    )


def _begins(before):
    """Whether a sentence may begin after this text: a line or a quote does, or a sentence ended."""
    if not before.strip() or before[-1] in "\n\"“'":
        return True
    return before[-1].isspace() and before.rstrip()[-1] in ".!?…:\"”'’"


def _ends(sentence, after):
    """Whether a sentence ends there: at an end mark, its own or the next, and at no word."""
    marks = ".!?…\"”'’"
    return not after or after[0] in marks or (sentence[-1:] in marks and after[0].isspace())


def told(summary, story, n=5):
    """
    How much of a summary the story tells, 0 to 1: the recall of its content words, times the share
    of its n-grams of words (of a shorter summary, of it all) that do not stand in the story so.
    """
    words, said = unique_content_words(summary), split_words(story)
    recall = sum(contains_word(word, said) for word in words) / max(1, len(words))
    n = min(n, len(split_words(summary)))
    grams, theirs = ngrams(split_words(summary), n), set(ngrams(said, n))
    copied = sum(gram in theirs for gram in grams) / max(1, len(grams))
    return recall * (1 - copied)


def ends_badly(story):
    """
    Whether a story ends badly. Of storybook's that is known; of others by a rule of thumb: the last
    two sentences have more bad words than good ones.
    """
    known = _recount(story)
    return known.facts["ending"] == "bad" if known else sounds_bad(story)


def sounds_bad(story):
    """The rule of thumb; right of 95 in 100 of storybook's stories (see its test)."""
    last = [lemmas(word) for word in split_words(" ".join(split_sentences(story)[-2:]))]
    good, bad = (sum(bool(forms & kind) for forms in last) for kind in (GOOD, BAD))
    return bad > good


# ----------------------------------------------------------------------------------------------
# storybook's stories, exactly


_recount = cache(storybook_parser.parse_story)


def _exact(record, true, story):
    """The exact checks: of `story` against `true`, both storybook.Story, `story` perhaps None."""
    asked, mentioned = record.entries("features"), set(split_words(record.prompt()))
    names = {name for name in true.facts["characters"] if name.istitle()}
    names = {name for name in names if name.lower() in mentioned}
    found = {}
    if asked:
        found["features"] = float(bool(story) and set(asked) <= set(story.features))
    if names:
        found["characters"] = float(bool(story) and names <= set(story.facts["characters"]))
    if record.has_fields(["summary"]):
        found["holds"] = float(bool(story) and _same_hands(true, story, mentioned))
    return found


def _same_hands(true, story, mentioned):
    """
    Whether the same ones have the same things in the end. What the instruction does not mention,
    such as what the shy rabbit was fed, the story may choose.
    """
    wanted, got = (
        [f"{who} {what}".split() for who, what in one.facts["holds"].items()]
        for one in (true, story)
    )
    return [len(words) for words in wanted] == [len(words) for words in got] and all(
        word == other or (word in _SLOTS and word.lower() not in mentioned)
        for words, others in zip(wanted, got, strict=True)
        for word, other in zip(words, others, strict=True)
    )
