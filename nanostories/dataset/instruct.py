"""
The record of TinyStories-Instruct: an instruction, and the story told to it.

    Features: Dialogue, BadEnding
    Words: come, road, sad
    Random sentence: The bus felt sad.
    Summary: A bus becomes jealous of a car.
    Story:

    Once upon a time, there was a big red bus. ...

The instruction is any subset of the four fields in any order: `words` that the story must use in
some form, a `sentence` that must stand in it (never its first), `features` of it, and a `summary`
of one or two lines. `parse_record` reads a record, `make_record` makes one from StoryFacts.

What the real file does, and how it is read: a value may have several lines, a field may come twice,
and where the instruction has no Summary the record has it after the story. That one is no part of
the instruction; it is kept apart as `trailing` and not trained on. The paper's slides write
"Sentence:", the file "Random sentence:"; both are read, the file's is written.
"""

import difflib
import random
import re
from dataclasses import dataclass
from hashlib import blake2b

from nanostories.dataset import storybook
from nanostories.text import words as english

LABELS = {
    "words": "Words",
    "sentence": "Random sentence",
    "features": "Features",
    "summary": "Summary",
}
# How often a field stands in the real file's instructions: words and sentence as counted in its
# validation part, features from Dialogue's share there (35 %) and among 50 real prompts (27 of the
# 38 with features), summaries in those 50 (37; the other 13 have it after the story).
FIELD_PROBABILITIES = {"words": 0.61, "sentence": 0.30, "features": 0.49, "summary": 0.74}
FEATURES = ("Dialogue", "BadEnding", "MoralValue", "Twist", "Foreshadowing", "Conflict")

_NAMES = {label: name for name, label in LABELS.items()} | {"Sentence": "sentence"}
_LABEL = re.compile(rf"^({'|'.join(_NAMES)}|Story):[^\S\n]*", re.MULTILINE)
# In a story a line may well begin "Sentence:" or "Story:"; these four the file puts after it.
_TRAILING = re.compile(rf"^({'|'.join(LABELS.values())}):[^\S\n]*", re.MULTILINE)
_SPELLINGS = {name.lower(): name for name in FEATURES} | {"plottwist": "Twist"}
# Speech in quotes ends with a mark inside them; a word in quotes ("zoom") is no speech.
_SPEECH = re.compile(r"[\"“][^\"“”]+[.,!?…—-]['’]?[\"”]")


@dataclass(frozen=True)
class Record:
    """
    One record. Raises ValueError for a value that could not be read back: with white space at an
    end, or with a line that begins like a field.
    """

    fields: tuple  # (name, value) pairs in their order, the names those of LABELS
    story: str = ""  # "" where only the instruction is known
    trailing: tuple = ()  # what stands after the story, as fields

    def __post_init__(self):
        for name, value in self.fields + self.trailing:
            if name not in LABELS or (name == "features" and value != _spelt(value)):
                raise ValueError(f"no field '{name}' of the value {value!r:.60}")
            # Its first line stands behind its own label, so that only the others can be labels.
            _check(value, _LABEL.search(f" {value}"))
        _check(self.story, _TRAILING.search(self.story))

    def values(self, name):
        """What the fields of this name say, a list of str: none, one, or several."""
        return [value for field, value in self.fields if field == name]

    def entries(self, name):
        """The entries of the fields of this name, which are lists with commas: a list of str."""
        entries = (entry.strip() for value in self.values(name) for entry in value.split(","))
        return [entry for entry in entries if entry]

    def has_fields(self, names):
        """Whether it has a field of each of the `names`."""
        return set(names) <= {name for name, _ in self.fields}

    def drop_fields(self, name):
        """The same without its fields of this name."""
        fields = tuple(field for field in self.fields if field[0] != name)
        return Record(fields, self.story, self.trailing)

    def prompt(self):
        """The text up to where the story begins."""
        return _lines(self.fields) + "Story: \n\n"

    def text(self):
        """The text to train on: instruction and story."""
        return self.prompt() + self.story


def _check(value, label):
    if label:
        raise ValueError(f"a line begins like a field ('{label[0].strip()}'): {value!r:.60}")
    if value != value.strip():
        raise ValueError(f"blank ends: {value!r:.60}")


def _lines(fields):
    return "".join(f"{LABELS[name]}: {value}\n" for name, value in fields)


# ----------------------------------------------------------------------------------------------
# reading


def parse_record(text):
    """
    The Record of a text, or None where it is none: without "Story:", with something before its
    first field, or two records in one.
    """
    start = text.lstrip()
    labels = list(_LABEL.finditer(start))
    story = next((label for label in labels if label[1] == "Story"), None)
    if story is None or labels[0].start():
        return None
    fields = _fields(start[: story.start()], labels[: labels.index(story)])
    rest = start[story.end() :]
    told, after = split_story(rest)
    trailing = _fields(after, list(_TRAILING.finditer(after)))
    try:
        return Record(fields, told, trailing)
    except ValueError:  # it would be read as another one
        return None


def split_story(text):
    """(story, rest) of what stands after "Story:": the rest begins with a field, or is ""."""
    label = _TRAILING.search(text)
    end = label.start() if label else len(text)
    return text[:end].strip(), text[end:]


def _fields(text, labels):
    """The (name, value) pairs of a text that begins with the first of `labels`, matches of it."""
    fields = []
    for i, label in enumerate(labels):
        end = labels[i + 1].start() if i + 1 < len(labels) else len(text)
        name, value = _NAMES[label[1]], text[label.end() : end].strip()
        fields.append((name, _spelt(value) if name == "features" else value))
    return tuple(fields)


def _spelt(features):
    """A list of features, those that are known spelt as in the file: "bad ending" is BadEnding."""
    names = [name.strip() for name in features.split(",") if name.strip()]
    return ", ".join(_SPELLINGS.get(re.sub(r"[\s_-]", "", name).lower(), name) for name in names)


# ----------------------------------------------------------------------------------------------
# asking


def make_instruction(words="", sentence="", features="", summary=""):
    """
    The Record of an instruction, its fields in this order. words, features: lists with commas, the
    features in any spelling. Raises ValueError for a feature that is none, or a value that is more
    than a value.
    """
    given = {"words": words, "sentence": sentence, "features": features, "summary": summary}
    fields = [(name, value) for name, value in given.items() if value.strip()]
    record = parse_record(_lines(fields) + "Story:")
    for name in record.entries("features") if record else ():
        if name not in FEATURES:
            near = difflib.get_close_matches(name, FEATURES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FEATURES)}"
            raise ValueError(f"no feature '{name}'; {hint}")
    if not record or record.story or len(record.fields) != len(fields):
        raise ValueError("a line within a field's value begins like another field")
    return record


# ----------------------------------------------------------------------------------------------
# making records of stories


@dataclass(frozen=True)
class StoryFacts:
    """A story and what is known of it; what is not can be made up from it (`make_record`)."""

    story: str
    words: tuple = ()
    features: tuple = ()
    summary: str = ""


def facts_from_json(story, given):
    """
    The StoryFacts of a story that came in a JSON object: TinyStories_all_data's has `summary`, and
    `words` and `features` in `instruction`; both may also stand beside the story. Raises TypeError
    where they are not lists of texts, or the summary is no text.
    """
    given = given | (given.get("instruction") or {})
    lists = [given.get(name) or [] for name in ("words", "features")]
    summary = given.get("summary") or ""
    texts = [summary, *(entry for entries in lists for entry in entries)]
    if not all(isinstance(one, list) for one in lists) or any(type(x) is not str for x in texts):
        raise TypeError("words and features are lists of texts, a summary is a text")
    return StoryFacts(story, *(tuple(filter(str.strip, one)) for one in lists), summary.strip())


def make_record(facts, seed):
    """
    A Record of the story, a pure function of the seed and the story: a random subset of the fields
    that it has, at least one, in random order, each by FIELD_PROBABILITIES.

    Where the words or the features are not known, three words are drawn from the story (a verb, a
    noun and an adjective, in their base forms), and Dialogue is a feature if there is any.
    Returns None for a story that cannot stand in a record, or of which nothing can be asked.
    """
    story = facts.story.strip()
    rng = story_rng(story, seed)
    sentences = storybook.split_sentences(story)
    # It must stand in the story as it is: not where the line was broken inside it.
    later = [one for one in sentences[1:] if one != sentences[0] and one in story]
    known = {
        "words": ", ".join(facts.words or sample_words(story, rng)),
        "sentence": rng.choice(later) if later else "",
        "features": ", ".join(facts.features or ["Dialogue"] * has_dialogue(story)),
        "summary": facts.summary,
    }
    known = [(name, value) for name, value in known.items() if value]
    chosen = [(name, value) for name, value in known if rng.random() < FIELD_PROBABILITIES[name]]
    if known and not chosen:
        chosen = [rng.choice(known)]
    rng.shuffle(chosen)
    record = parse_record(_lines(chosen) + f"Story: \n\n{story}")
    whole = record and record.story == story and len(record.fields) == len(chosen)
    return record if whole and chosen else None


def story_rng(story, seed, purpose=b"build"):
    """A random.Random that depends on the seed, the story and what it is for."""
    salt = seed.to_bytes(8, "little", signed=True)
    return random.Random(blake2b(story.encode(), salt=salt, person=purpose).digest())


def sample_words(story, rng):
    """A verb, a noun and an adjective of the story in their base forms, as many as it has."""
    bases = {"VERB": set(), "NOUN": set(), "ADJ": set()}
    plain = re.findall(r"(?<![-'’\w])[a-z]{3,}(?![-'’\w])", story)  # no names, no parts of words
    for word in set(plain) - english.STOP_WORDS:
        for upos, forms in english.dictionary_lemmas(word).items():
            bases.get(upos, set()).update(forms)
    drawn = []
    for found in bases.values():
        if left := sorted(found - english.STOP_WORDS - set(drawn)):
            drawn.append(rng.choice(left))
    return drawn


def has_dialogue(story):
    """Whether somebody speaks in it, in double quotes."""
    return bool(_SPEECH.search(story))


def drop_one_field(record, names, seed):
    """
    The record, but without one of the fields `names` (at random) where it has all of them: so they
    never stand together, whichever the record.
    """
    if not record.has_fields(names):
        return record
    return record.drop_fields(story_rng(record.story, seed, b"apart").choice(names))
