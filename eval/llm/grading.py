"""From exercises to verdicts: the conversations with a judge, and what they would cost."""

import sys
from contextlib import closing

from eval.llm import client, endpoint


def conversation(ask, protocol, exercise):
    """
    The last reply of a judge to an exercise, "" where it says nothing. ask(messages, number): the
    client's, or what stands in for it.
    """
    messages, reply = [], ""
    for number in range(len(protocol.questions)):
        messages = [*messages, {"role": "user", "content": protocol.turn(number, exercise)}]
        reply = ask(messages, exercise.number)
        if not reply.strip():
            return ""  # a refusal; servers take no empty message either
        messages = [*messages, {"role": "assistant", "content": reply}]
    return reply


def grade(settings, protocol, asked, path):
    """
    The (reply, verdict or None) of each exercise in `asked`, in order.

    settings: those of client.Client. path: the file that keeps the replies.
    """

    def work(i):
        reply = conversation(service.ask, protocol, asked[i])
        return reply, protocol.read(reply, asked[i])

    found = [None] * len(asked)
    with client.Client(settings, path, protocol.version) as service:
        with closing(service.each(work, range(len(asked)), len(asked))) as graded:
            for i, result in graded:
                found[i] = result
        print(f"{settings.judge}: {service.spent()}", file=sys.stderr)
    return found


def plan(settings, protocol, asked, path):
    """Print what --dry_run promises: a full prompt, and the calls, tokens and cost of all."""
    for number in range(len(protocol.questions)):
        print(f"--- turn {number + 1} of the first exercise\n{protocol.turn(number, asked[0])}\n")
    calls = read = kept = 0
    longest = "x" * 4 * settings.max_tokens  # as a reply may be

    def ask(messages, number):
        nonlocal calls, read, kept
        if service and (line := service.kept(messages, number)):
            kept += 1
            return line["reply"]
        calls, read = calls + 1, read + endpoint.tokens_of(messages)
        return longest

    with client.kept_before(settings, path, protocol.version) as service:
        for exercise in asked:
            conversation(ask, protocol, exercise)
    print(endpoint.promise(settings, calls, kept, read))
