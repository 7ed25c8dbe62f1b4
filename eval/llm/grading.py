"""From JudgeItems to verdicts: the conversations with a judge."""

import sys

from configs import printable
from eval.llm.client import Client


def grade(settings, rubric, items, path, facts=None):
    """The (reply, verdict or None) of each JudgeItem, in order; None for the whole of a dry run,
    which prints the first prompt, and the calls, tokens and cost of all. path: the cached replies.
    facts: a dict whose "request" becomes the one that the server accepts."""
    turns = range(len(rubric.turns))
    if settings.dry_run:
        for turn in turns:
            prompt = printable(rubric.prompt(turn, items[0]))
            print(f"--- turn {turn + 1} of the first item\n{prompt}\n")

    def grade_one(item):
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": rubric.prompt(turn, item)})
            reply = client.complete(messages, item.number)
            if not reply.strip():
                return "", None  # a refusal; servers take no empty message either
            messages.append({"role": "assistant", "content": reply})
        return reply, rubric.parse(reply, item)

    with Client(settings, path, rubric.version) as client:
        graded = client.map(grade_one, items)
    (facts or {})["request"] = client.accepted
    if settings.dry_run:
        print(client.summary())
        return None
    print(f"{settings.judge}: {client.summary()}", file=sys.stderr)
    return graded
