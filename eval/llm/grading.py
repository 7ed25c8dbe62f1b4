"""From JudgeItems to verdicts: the conversations with a judge."""

import sys

from eval.llm.client import Client


def converse(client, rubric, item):
    """The last reply of a judge to a JudgeItem; "" where any of its replies is empty."""
    messages, reply = [], ""
    for number in range(len(rubric.turns)):
        messages = [*messages, {"role": "user", "content": rubric.prompt(number, item)}]
        reply = client.complete(messages, item.number)
        if not reply.strip():
            return ""  # a refusal; servers take no empty message either
        messages = [*messages, {"role": "assistant", "content": reply}]
    return reply


def grade(settings, rubric, items, path):
    """The (reply, verdict or None) of each JudgeItem, in order; None for the whole of a dry run,
    which prints the first prompt, and the calls, tokens and cost of all.

    settings: JudgeSettings. path: the file that caches the replies.
    """
    if settings.dry_run:
        for number in range(len(rubric.turns)):
            print(f"--- turn {number + 1} of the first item\n{rubric.prompt(number, items[0])}\n")

    def grade_one(item):
        reply = converse(client, rubric, item)
        return reply, rubric.parse(reply, item)

    with Client(settings, path, rubric.version) as client:
        graded = client.map(grade_one, items)
    if settings.dry_run:
        print(client.summary())
        return None
    print(f"{settings.judge}: {client.summary()}", file=sys.stderr)
    return graded
