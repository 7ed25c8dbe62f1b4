"""Prompts that test what a model knows, with right and wrong continuations of them.

    paper()                  the paper's 24: context tracking, reasoning, facts
    made(200, seed=1)        for models of storybook.py: facts of its own stories

The right and the wrong continuation of a pair differ as little as possible: "... She reached into
the bag again and took": " the carrot", " the apple".

The prompts are those of the paper's tables of completions (Eldan & Li 2023, figures 9 to 11; the
student report has 18 of them), cited as data; the continuations are ours.
"""

import random
import re
from dataclasses import dataclass

from nanostories.dataset import storybook

KINDS = {
    "context": "whether it keeps track of the persons and things of the text",
    "reasoning": "elementary reasoning: cause and effect, alternatives, elimination",
    "facts": "knowledge that every child has",
}


@dataclass(frozen=True)
class Prompt:
    """A beginning, what it tests (one of KINDS), and (right, wrong) continuations of it."""

    kind: str
    text: str
    pairs: tuple


def paper():
    """The paper's prompts: 6 of context, 9 of reasoning, 9 of facts."""
    prompts = []
    for kind, block in _PAPER.items():
        for lines in block.strip().split("\n\n"):
            text, *pairs = lines.split("\n")
            prompts.append(Prompt(kind, text, tuple(tuple(p[1:].split("|")) for p in pairs)))
    return prompts


_PAPER = {
    "context": """
"Hi Jane, have you seen Alice? I can't find her anywhere", said Jack.
> Jane| Alice
> Jane said| Alice said

Max had two dogs. One was white and the other was black. Max walked up the street and saw a kid \
with a dog. He told the kid, "I see you have a Brown dog. I also have
> two dogs| two cats
> a white dog| a red dog
> a black dog| a green dog

Anne had a piece of candy in her left pocket and a piece of chocolate in her right pocket. Anne's \
mom asked her, "Anne, what is that you have in your left pocket?"
> "I have a piece of candy| "I have a piece of chocolate
> Anne said, "It is candy| Anne said, "It is chocolate

Alice had both an apple and a carrot in her bag. She took the apple out of the bag and gave it to \
Jack. She reached into the bag again and took
> the carrot| the apple
> out the carrot| out the apple

Alice and Jack walked up the street and met a girl in a red dress. The girl said to them, "Hi, \
I'm Jane. What are your names?"
> Alice said, "I'm Alice| Alice said, "I'm Jane
> "We are Alice and Jack| "We are Jane and Jack

Diva was hungry, and wanted to bake a cake, but she didn't have any sugar at home, so she decided \
to go ask around. She started walking and met a squirrel. She asked the squirrel, "Would you \
happen
> to have some sugar| to have some nuts
> to have any sugar| to have any cake
""",
    "reasoning": """
Lily likes cats and dogs. She asked her mom for a dog and her mom said no, so instead she asked
> for a cat| for a dog
> her mom for a cat| her mom for a dog

Jack told Mary, "If you give me your banana, I'll give you my apple". Mary gave Jack her Banana so
> Jack gave her his apple| Jack gave her his banana
> Jack gave Mary his apple| Jack gave Mary his banana

On weekends Jack went to visit his grandmother whereas on weekdays he would go to school. Last \
weekend, when Jack was on his way to
> his grandmother| his school
> visit his grandmother| visit his school

Lily and Ben were having an argument. Ben said that cake is much better than ice cream and Lily \
said that
> ice cream is much better than cake| cake is much better than ice cream
> ice cream is better| cake is better

Lily and Ben are having an argument. They are trying to decide between the park and the swimming \
pool. Ben says, "I want to go to the park". Lily says
>, "I want to go to the pool|, "I want to go to the park
>, "No|, "Yes

Jack's mother was not home, and his father was at home. When Jack came home, he said hello to
> his father| his mother
> his dad| his mom

Lily doesn't like swimming. When her father wants to take her to the swimming pool, she says
>, "No|, "Yes
>, "I don't want to go|, "I really want to go

Both Ben and Lily wanted cake. Father said that there was only one piece of cake left. They
> shared it| lost it
> had to share| had to sleep

Ben went to visit Lily in her house, but she was not at home. Ben knocked on the door,
> but no one answered| and Lily answered
> but nobody came| but Lily came
""",
    "facts": """
Alice was so tired when she got back home so she went
> to bed| to school
> to sleep| to play

Jack and Lily saw a rainbow after a rainy day. They were amazed by the colors. Jack said, "Look, \
Lily. A rainbow has
> many colors| many legs
> seven colors| seven wheels

Jack and Lily liked to watch the moon at night. They noticed that the moon changed its shape \
every night. Sometimes the moon was big and round, and sometimes it was
> small| green
> thin| loud

Jack wanted to read a book, so he went to
> the library| the kitchen
> his room| his bath

"Can cows fly?", Alice asked her mother.
> "No| "Yes
> "No, cows can't fly| "Yes, cows can fly

"What do birds like to eat?", Tom asked his mother.
> "Birds like to eat worms| "Birds like to eat chairs
> "Seeds| "Stones

"What language do they speak in France?", Tom asked his mother.
> "French| "Chinese
> "They speak French| "They speak Chinese

If I throw a ball up in the air, eventually it will
> fall down| fly away
> come down| stay up

It was winter and cold outside so his mother told him, "You should
> wear a coat| wear a swimsuit
> put on your coat| take off your coat
""",
}


def made(count, seed):
    """`count` prompts of kind context from storybook.py's stories, one of each: it ends before a
    name or a thing that the story has mentioned; the wrong one is another of its kind, new to the
    story.
    """
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
        if len(prompts) == count:
            break
    return prompts
