"""Tiny children's stories from a seeded grammar that knows the facts of every story it generates.

    python -m nanostories.dataset.storybook --count=3            three stories, each with its facts
    python -m nanostories.dataset.storybook --count=3 --seed=7   three others

The data of `make story` (no network) and the ground truth of tests. STORIES is the whole grammar:
`generate_story` walks through its sentences at random and fills them in; storybook_parser.py, which
reads stories, finds the walk that a text took through the same sentences.

How to read STORIES. `*` opens a plot (or a run of steps that plots include as @name), `=` one of
its endings: good or bad | who has what in the end | summary. Each step of a plot opens with `-`,
`¶` (it starts a paragraph) or `?` (it may be left out); `/` opens an alternative to the step.
[a|b] is a free choice. CAPITALS are slots for facts, the same throughout a story: X and Y are the
children, HE HIM HIS KID of X, YHE YHIS YKID of Y, MHE MHIS of X's MOM (MOMMY: "Mom"), and the rest
variables of WORDS. #Tags are the TinyStories-Instruct features that a sentence makes true; #Holds
marks the sentence that says who has what.
"""

import argparse
import random
import re
from dataclasses import dataclass, field

WORDS = """
GIRL Lily Mia Sue Anna Amy Lucy Ella Rose Zoe Nora Emma Ruby Kate Molly Grace Daisy Jane Clara
BOY Tim Tom Ben Max Sam Jack Leo Finn Noah Luke Owen Henry Oscar Toby Adam Peter Jake Ned
MOM mom grandma dad grandpa
VERB sing dance draw paint read swim climb skip cook fish skate swing hop juggle twirl write hum
    sew knit sail dive row ski surf jump paddle
ADJ red blue green yellow pink purple orange white black brown golden silver shiny old plain big
    little tiny pretty striped bright lovely fancy special
FUR grey brown white black tiny small young spotted shy gentle quiet thin
TASTE big fresh tasty yummy large huge lovely perfect delicious round
TOY ball kite doll truck hat scarf bell whistle puppet balloon flute basket bucket ring coin marble
    umbrella mask crown flag book bracelet drum cap stone shell feather button horn pencil
THING robot train plane clock lamp vase mug bowl plate boat car wagon lantern mirror teapot
PRIZE medal ribbon trophy badge star cup sash pin    BAKE cake pie tart loaf pudding pizza
FOOD cookie muffin bun apple pear peach plum sandwich pancake waffle melon donut banana
SNACK carrot berry nut seed leaf cracker cherry grape  PET dog cat puppy kitten parrot hamster
ANIMAL rabbit piglet chick duck frog bird fox squirrel mouse lamb turtle hedgehog goat pony calf
    deer owl beaver
PLACE park beach farm lake zoo playground market river pond shore fair castle harbor station
GOAL gate bridge fence barn well tower wall mill oak cave
SPOT bench tree bush rock log shed hedge haystack barrel rosebush
"""
VALUES = re.split(r"\b([A-Z]{3,})\b", WORDS)[1:]
VALUES = {name: words.split() for name, words in zip(VALUES[::2], VALUES[1::2], strict=True)}
FEMALE = [*VALUES.pop("GIRL"), "mom", "grandma"]
VALUES["X"] = VALUES["Y"] = FEMALE[:-2] + VALUES.pop("BOY")
PRONOUN_PREFIX = {"X": "", "Y": "Y", "MOM": "M"}  # HE is of X, YHE of Y, MHE of MOM
DESCRIBED = [("ADJ", "TOY"), ("ADJ", "THING"), ("ADJ", "PRIZE"), ("TASTE", "FOOD"),
             ("TASTE", "BAKE"), ("TASTE", "SNACK"), ("FUR", "ANIMAL")]  # fmt: skip
# The first three of these that a story has are its `words`.
WORD_ORDER = "VERB TOY THING PRIZE FOOD BAKE ANIMAL ADJ TASTE FUR SNACK PET GOAL PLACE MOM"

STORIES = """
* @open - Once upon a time, there was a [little|kind] KID named X. / There once was a [young|clever]
KID named X. / X was a [brave|happy] KID who lived near the [sea|hills|woods].
* @likes ? HE [loved|liked] to VERB [every day|in the sun|with HIS friends|more than anything].
* @friends - From that day on, X and Y were [good|best] friends. / After that, X and Y would VERB
together every [day|week]. / Then X and Y went to VERB and [laughed|smiled|sang] all the way home.
* lost @open @likes - One [sunny|windy|cloudy] [day|morning], X [took|carried] a ADJ TOY to the
PLACE. / HIS [favorite|best] thing was a ADJ TOY, and HE took it to the PLACE. - But when X looked
[down|back|around], the ADJ TOY was gone.
¶ "Oh no! [Where is my TOY?|I lost my TOY!]" cried X. - [Just then|Soon], HIS friend Y came by.
/ A YKID named Y heard HIM and came to help. - "I will help you, X," said Y.
= good | X has ADJ TOY | X loses a ADJ TOY, and Y finds it behind the SPOT.
- [Then|At last], Y looked behind the SPOT and [saw|found] the ADJ TOY. - "[Look|Here it is]!" said
Y, and [gave|handed] the ADJ TOY to X. #Holds
¶ X [hugged|thanked] Y and held the TOY tight. @friends / X learned that a [good|true] friend always
helps. #MoralValue
= bad | nobody has ADJ TOY | X loses a ADJ TOY, and it is never found.
- They [looked|searched] until it was dark, but no one could find the ADJ TOY. #Holds
¶ X [walked|went] home with empty hands. - HE never saw the ADJ TOY again. / HE learned to take care
of HIS things. #MoralValue
* share @open - One [day|morning], HIS MOM gave HIM a TASTE FOOD. - X took the TASTE FOOD to the
PLACE. - HIS friend Y was there too, but YHE had nothing to eat. / There HE met Y, a hungry YKID.
¶ "[May|Can] I have some of your FOOD?" asked Y. - "No! The FOOD is [mine|all for me]!"
[said|shouted] X. #Conflict
= good | X has half of the FOOD, Y has half of the FOOD | X learns to share a TASTE FOOD with Y.
- Then X saw that Y was [sad|in tears], and HE felt bad. - "I am sorry, Y," said X. "We can share."
¶ X [broke|cut] the TASTE FOOD in two and gave half of it to Y. #Holds @friends / X learned that it
is [good|fun|kind] to share. #MoralValue
= bad | nobody has TASTE FOOD | X does not share a TASTE FOOD with Y and ends up alone.
¶ Y [walked|went|ran] away, and X ate the TASTE FOOD all alone. #Holds - HE ate so [fast|much] that
HIS tummy began to hurt. / Then X wanted to play, but Y did not come back. - HE wished that HE had
shared the FOOD with Y. #MoralValue / X sat down alone and felt [sad|lonely].
* friend @open @likes - One [day|cold day|rainy day], X went for a walk at the PLACE. - HE heard a
[small|soft|strange] sound and saw a FUR ANIMAL behind the SPOT. - The FUR ANIMAL was [cold and
wet|lost and afraid|shaking with fear].
= good | ANIMAL has TASTE SNACK | X makes friends with a FUR ANIMAL.
¶ "Do not be afraid, little ANIMAL," said X. "I [am your friend|will not hurt you]." / "Hello,
little ANIMAL," [said|whispered] X. "Are you [hungry|lost|all alone]?" ? The ANIMAL [did not
move|only looked at HIM|hid its face]. - X had a TASTE SNACK in HIS [pocket|bag], and HE held it
out. - [Slowly|At last], the FUR ANIMAL came [closer|out] and ate the TASTE SNACK. #Holds ? Then the
ANIMAL [licked HIS hand|jumped for joy].
¶ From that day on, X and the FUR ANIMAL were [best|good] friends. / Every day after that, X went to
the PLACE to see the FUR ANIMAL. / X learned that it is good to be kind. #MoralValue
* promise @open - HIS MOM [had|kept] a ADJ THING on a high shelf. - "Do not touch the THING, X,"
said HIS MOM. "It [can|may] break." #Foreshadowing - "I promise, MOMMY," said X.
¶ But X looked at the ADJ THING again and again. / When HE was alone, X wanted to [see|hold] the ADJ
THING. - HE [climbed|stood] on a chair. "I will only hold it [once|for a minute]," HE thought.
= bad | nobody has ADJ THING | X breaks a promise, and a ADJ THING with it.
- The chair shook, and the ADJ THING [fell|dropped] to the floor and broke. #Conflict
¶ HIS MOM heard the [noise|crash]. "X, you promised me," MHE said. - "I am sorry, MOMMY," said X,
but no one could [mend|fix] the ADJ THING. #Holds - X went to bed [sad|in tears] that night. / X
learned that a promise must be kept. #MoralValue
= good | X has ADJ THING | X keeps a promise and is given a ADJ THING.
- Then X stopped. "No, I made a promise," HE said and [climbed|got] down. #Twist
¶ "You kept your promise, X," said HIS MOM. - HIS MOM took down the ADJ THING and gave it to X.
#Holds - X took good care of the ADJ THING [for years|every day].
* race @open - HE was the fastest KID in the [school|town|village]. - "[I can beat you|You can not
beat me] in a race!" HE told Y, a [shy|small] YKID. #Conflict - "Let us race to the GOAL," said Y.
"The winner gets a ADJ PRIZE."
¶ They [started|ran] [at once|side by side], and X was soon far ahead.
= good | Y has ADJ PRIZE | X rests in a race, and Y wins a ADJ PRIZE.
- "I have lots of time," HE thought, and HE [sat|lay] down behind the SPOT. - But Y [ran on and
on|kept running|did not stop]. - When X looked up, Y was already at the GOAL. #Twist
¶ So Y [won|got] the ADJ PRIZE. #Holds - "Well done, Y," said X. "[You ran well|I was too proud]." -
X learned not to be [so proud|too sure]. #MoralValue / X clapped, and Y held up the ADJ PRIZE.
* gift @open @likes - It was HIS birthday, but no one [said a word|sang a song]. - "Do you know what
day it is?" HE asked HIS friend Y. - "It is [Monday|Friday|Sunday]," said Y, and [ran|walked] away.
#Foreshadowing - X went home and felt [sad|lonely]. "Y forgot my birthday," HE thought.
= good | X has ADJ TOY | Y surprises X with a ADJ TOY.
¶ But when X opened the door, Y [jumped out|was there] and shouted, "Surprise!" #Twist - Y held out
a box. "Happy birthday, X! This is for you." - X opened the box and found a ADJ TOY. #Holds / Inside
the box was a ADJ TOY. #Holds
¶ X thanked Y and held the ADJ TOY [close|tight]. @friends
* box @open - One [rainy|cold|snowy] day, X found a [small|wooden] box under a
[trunk|chair|rug]. - The box was locked. "What is inside?" HE [wondered|thought]. #Foreshadowing
¶ X [carried|took] the box to HIS MOM. - "I lost it long ago," said HIS MOM, and MHE got a
[tiny|rusty] key. - They opened the box and found a ADJ TOY. / The key turned with a click, and
inside was a ADJ TOY. - "This TOY was mine when I was [little|a child]," said HIS MOM. #Twist
= good | MOM has ADJ TOY | X finds a box and gives HIS MOM back a ADJ TOY.
¶ "You should keep the TOY, MOMMY," said X, and put it in MHIS hands. #Holds - HIS MOM held the ADJ
TOY close and [hugged|kissed|thanked] X. - X learned that giving can make you [happy|glad].
#MoralValue / That was the best day for X and HIS MOM.
* learn @open - More than anything, X wanted to learn to VERB. - "Will you teach me to VERB?" HE
asked HIS friend Y. - "Yes, [of course|I will]," said Y. "When you learn it, you get a ADJ PRIZE." -
The first time, X [could not do it|did it all wrong] and wanted to cry.
¶ "I will never learn to VERB!" [cried|said] X. #Conflict / "It is too hard," said X. "I can not
VERB." #Conflict - "[Try again|Do not give up], X," said Y.
= good | X has ADJ PRIZE | Y helps X learn to VERB.
¶ So X tried [again and again|every day|for a week]. - Then one [day|morning], X could VERB without
any help. - Y clapped and gave HIM the ADJ PRIZE. #Holds - X showed the ADJ PRIZE to HIS MOM and was
very proud. / X learned to [keep trying|never give up]. #MoralValue
* lie @open - One day, HIS MOM [made|baked] a TASTE BAKE. - "Do not eat the BAKE before dinner, X,"
said HIS MOM. #Foreshadowing - But X could not wait, and HE ate the TASTE BAKE all up.
¶ "[Who ate|Where is] the BAKE?" asked HIS MOM. - "The PET ate it," said X, but it was a lie.
#Conflict
= good | MOM has a piece of BAKE | X tells a lie about a TASTE BAKE and then the truth.
- Then HIS MOM saw crumbs on X's [chin|shirt|hands]. #Twist - X [felt bad|turned red]. "I am sorry,
MOMMY. I ate the BAKE, not the PET."
¶ They made a new BAKE, and X gave the first piece to HIS MOM. #Holds - From then on, X always told
the truth. / X learned that it is best to tell the truth. #MoralValue
= bad | nobody has TASTE BAKE | X tells a lie about the PET, who must sleep outside.
- So HIS MOM was [angry|cross], and the PET had to sleep outside in the [cold|rain].
¶ X heard the PET cry all night and could not sleep. - In the morning, the PET did not want to play
with X. - X learned too late that a lie can hurt a friend. #MoralValue
* bake @open @likes - One day, HIS friend Y was [sick|ill] in bed. - "Can we [bake|make] something
for Y?" X asked HIS MOM. - "Yes," said HIS MOM. "Let us [bake|make] a TASTE BAKE."
¶ They mixed [flour and eggs|sugar and milk|butter and honey] in a [big|wide] bowl. - Soon the
[kitchen|house] smelled [sweet|good|wonderful].
= good | Y has TASTE BAKE | X and HIS MOM make a TASTE BAKE for Y.
¶ X [carried|took] the TASTE BAKE to Y. - "This BAKE is for you, Y," said X. #Holds - Y took a bite
and [smiled|laughed]. "It is so good! Thank you, X!" @friends
"""


@dataclass(frozen=True)
class GeneratedStory:
    """A story, its facts, and the fields of a TinyStories-Instruct record for it."""

    text: str  # paragraphs separated by a blank line
    plot: str  # its name in STORIES
    facts: dict  # characters {name: "he" | "she"}, objects, places, holds {who: what}, ending
    words: list  # two or three main words of the text
    features: list  # those of TinyStories-Instruct's that are true of it
    summary: str  # one sentence
    sentence: str  # one of the text, verbatim, not the first


@dataclass(eq=False)
class Node:
    """A sentence of one plot with one ending, and the nodes that may follow it."""

    template: str = ""  # as STORIES has it, its slots in braces
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
    """Add the nodes of a plot with one ending between two nodes. steps: its part of STORIES."""
    plot_nodes, last_nodes = [], [start]
    for mark, step in re.findall(r"(?:^|\s)([-?¶/]) (.+?)(?=\s[-?¶/] |$)", steps):
        if mark != "/":  # a new step follows every alternative of the step before
            before, last_nodes, paragraph = last_nodes, last_nodes * (mark == "?"), mark == "¶"
        previous, tags = before, re.findall(r"#(\w+)", step)
        for i, template in enumerate(split_sentences(re.sub(r"\s*#\w+", "", step))):
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
    """(start, end): STORIES as a graph of Nodes from before a story to after it."""
    start, end, steps_of = Node(), Node(), {}
    source = re.sub(r"\b(a )?[A-Z]{3,}\b|\bHE\b|\b[XY]\b", r"{\g<0>}", STORIES.strip())
    for block in re.split(r"\n(?=[*=])", source):
        head, _, steps = block[2:].partition("\n" if block[0] == "=" else " ")
        steps = re.sub(r"@\w+", lambda name: steps_of[name[0]], steps.replace("\n", " "))
        if block[0] == "*":
            plot, steps_of[head] = head, steps
        else:
            _add_plot((plot, *head.split(" | ")), f"{steps_of[plot]} {steps}", start, end)
    return start, end


def _slot_words(variable, value):
    """{slot: word} of a variable's value: ("ADJ", "old") -> {"ADJ": "old", "a ADJ": "an old"}."""
    if variable not in PRONOUN_PREFIX:
        return {variable: value, f"a {variable}": f"a{'n' * (value[0] in 'aeiou')} {value}"}
    words = ("she her her girl" if value in FEMALE else "he him his boy").split()
    slots = [PRONOUN_PREFIX[variable] + slot for slot in ("HE", "HIM", "HIS", "KID")]
    return dict(zip(slots, words, strict=True)) | {variable: value, f"{variable}MY": value.title()}


_CHOICE = re.compile(r"\[([^]]*)\]")
START, END = _build_graph()
SLOT_WORDS = {name: {x: _slot_words(name, x) for x in VALUES[name]} for name in VALUES}
VARIABLE_OF_SLOT, SLOT_VALUES = {}, {}  # {slot: variable}, {slot: {word: values that give it}}
for _name, _value in ((name, value) for name in SLOT_WORDS for value in SLOT_WORDS[name]):
    for _slot, _word in SLOT_WORDS[_name][_value].items():
        VARIABLE_OF_SLOT[_slot] = _name
        SLOT_VALUES.setdefault(_slot, {}).setdefault(_word, set()).add(_value)


def fill_slots(values):
    """{slot: word} for a story's values, {variable: value}."""
    return {slot: word for x in values for slot, word in SLOT_WORDS[x][values[x]].items()}


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
    """The GeneratedStory of a text, by the Nodes of its walk and its values, {variable: value}.
    Raises KeyError where a variable that its facts need has no value."""
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
