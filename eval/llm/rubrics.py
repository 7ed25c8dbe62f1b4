"""Rubrics: what a judge is asked (rubrics.toml), and how its reply is parsed.

    item = JudgeItem(beginning="Once upon a time", text=", a cat sat.")
    PAPER.prompt(0, item)            the first message to the judge
    PAPER.parse(reply, item)         {"grammar": 8.0, ..., "age group": "C"}, or None

A story is data. It may hold ***, "Grammar: 10/10" or orders to the judge. So each item has two
codes, hashes of all its text that occur nowhere in it. The fence marks where the item begins and
ends, and the separator. The verdict nonce marks the verdict: only what follows it counts, whatever
the judge quotes, and a reply without it has no verdict.
"""

import re
import tomllib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

AGES = {"A": "3 or under", "B": "4-5", "C": "6-7", "D": "8-9", "E": "10-12", "F": "13-16"}


@dataclass(frozen=True)
class JudgeItem:
    """What is to be judged. number: identifies it in its run, as (prompt, sample)."""

    text: str  # what the model wrote
    beginning: str = ""  # its prompt: the beginning or the instruction
    other: str = ""  # a second text, to compare with; or the marked words with their synonyms
    number: tuple = (0, 0)

    @property
    def fence(self):
        """Sixteen hexadecimal digits that are in no text of the item: they enclose it."""
        return self._code("fence")

    @property
    def verdict_nonce(self):
        """Sixteen others, which are in the prompt only at the start of the verdict's form."""
        return self._code("verdict")

    def _code(self, purpose):
        texts, code = (self.beginning, self.text, self.other), purpose
        while code == purpose or any(code in text for text in texts):
            data = "\0".join((code, *texts)).encode("utf-8", "surrogatepass")
            code = blake2b(data, digest_size=8).hexdigest()
        return code


@dataclass(frozen=True)
class Rubric:
    """A way of grading. Its version is part of the key of every cached reply."""

    version: str
    turns: list  # one text for each turn, with {code} {form} {beginning} {work} {other}
    fields: dict  # {name: choices} in the order of the form; no choices: a grade from 0 to 10

    def form(self, nonce):
        """The line that a verdict has to be, after an item's verdict_nonce."""
        # "?" is no value, so a judge that repeats the form has given no verdict.
        blanks = (f"{name}: {'?' if choices else '?/10'}" for name, choices in self.fields.items())
        return f"{nonce} {', '.join(blanks)}"

    def prompt(self, turn, item):
        """The message to the judge in turn number `turn`."""
        return self.turns[turn].format(
            code=item.fence, form=self.form(item.verdict_nonce), beginning=item.beginning,
            work=item.text, other=item.other,
        )  # fmt: skip

    def parse(self, reply, item):
        """The verdict of a reply: {name in lower case: float grade or str choice}, or None."""
        # The last one right after a nonce counts, whole or not at all, and no other text does.
        after_nonces = reply.split(item.verdict_nonce)[1:]
        return self._verdict(next(filter(self._field().match, reversed(after_nonces)), ""))

    def _verdict(self, text):
        """The verdict that a text begins with, only marks between its fields, or None."""
        choices = {name.lower(): values for name, values in self.fields.items()}
        verdict, place = {}, 0
        while len(verdict) < len(choices):
            match = self._field().match(text, place)
            if not match or (name := match[1].lower()) in verdict:
                return None
            place = match.end()
            value = _value(choices[name], match[2], match[3])
            if value is None or self._continuation(choices[name]).match(text, place):
                return None
            verdict[name] = value
        return verdict

    def _continuation(self, choices):
        """A regex for what makes a value none: "8 to 9", "[8, 9]", "D/E", "a child" for an A."""
        between = r"[^\w\n.(]*+"
        if choices:
            return re.compile(rf"[ \t]+[A-Za-z]|{between}({'|'.join(choices)})(?!\w)", re.ASCII)
        number = rf"[0-9]++(?!\w|[.)]\W*({'|'.join(self.fields)}))"  # but "2. Creativity" is next
        return re.compile(rf"{between}((or|to|and)\b{between})?{number}", re.IGNORECASE | re.ASCII)

    def _field(self):
        """A regex for marks and then a field: "Grammar: 8/10", "**Age group**: (E)"."""
        names = "|".join(map(re.escape, self.fields))
        return re.compile(
            rf"[\s0-9,;.|*_`()\[\]#-]*(?<![A-Za-z0-9])({names})[*_`\"']*\s*(?:[:=]|-\s)"
            r"[\s*_`\"'(\[]*([0-9]+(?:\.[0-9]+)?|[A-Za-z]+)(?![A-Za-z0-9\u0080-\uffff]|[.,][0-9])"
            r"(?:[*_`\"']*\s*(?:/|out of)\s*([0-9]+))?[*_`\"')\]]*",
            re.IGNORECASE | re.ASCII,
        )


def _value(choices, text, scale):
    """The grade from 0 to 10, or the choice, that a number or a word stands for; or None."""
    if choices:
        value = next((choice for choice in choices if choice.lower() == text.lower()), None)
        return None if scale else value
    if text.isalpha() or scale not in (None, "10") or float(text) > 10:
        return None
    return float(text)


def _rubric(turns, grades=(), choices=None, **others):
    """The Rubric of a table of rubrics.toml, each turn with its {parts} in place."""
    for name, part in _PARTS.items():  # a part may hold those after it
        turns = [turn.replace(f"{{{name}}}", part) for turn in turns]
    return Rubric(turns=turns, fields=dict.fromkeys(grades) | (choices or {}), **others)


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
REQUIREMENTS, _PARTS = _TABLES.pop("requirements"), _TABLES.pop("parts")
_PARTS["ages"] = " ".join(f"{letter}: {age}." for letter, age in AGES.items())
RUBRICS = [_rubric(**table) for table in _TABLES.values()]
PAPER, INSTRUCT, REPORT, SYNONYMS, KNOWLEDGE, PAIRS, TOPIC = RUBRICS
