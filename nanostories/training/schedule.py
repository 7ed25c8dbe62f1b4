"""The learning rate and the rows of a step, how far a run is, and when it evaluates and saves."""

import bisect
import math
from datetime import timedelta

SAVE_SECONDS = 600  # between checkpoints, unless save_interval is set


def get_lr(settings, step, progress):
    """The learning rate of step number `step`, from 0: from learning_rate down to min_lr as
    `decay_progress` goes from 0 to 1, times a linear warm-up over warmup_iters steps."""
    progress = min(max(progress, 0.0), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    decay = {"cosine": cosine, "linear": 1 - progress, "constant": 1.0}[settings.schedule]
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_iters))
    return warmup * (settings.min_lr + decay * (settings.learning_rate - settings.min_lr))


def rate_at_end(settings, max_iters):
    """A line for a run that goes on after the schedule's last step; "" for one that does not."""
    end = settings.lr_decay_iters
    if not 0 < end < max_iters or settings.schedule == "constant":
        return ""
    return f"after step {end:,} the learning rate is {get_lr(settings, end, 1.0)}"


def rows_of_step(settings, step):
    """(first, last): which rows of the loader's stream step number `step` takes, last not included.

    They are batch_size times gradient_accumulation_steps rows. With grow_iters the first steps take
    batch_size, and the factor doubles at even intervals until step grow_iters has all of it."""
    factor = settings.gradient_accumulation_steps
    doublings = (factor - 1).bit_length()  # how many of 1, 2, 4, ... are below factor
    end = settings.grow_iters if doublings else 0
    batches, size = factor * max(0, step - end), factor  # of batch_size rows, before this step
    for i in range(doublings):
        begin, stop = end * i // doublings, end * (i + 1) // doublings
        batches += 2**i * (min(step, stop) - min(step, begin))  # the steps of this size before
        size = 2**i if begin <= step < stop else size
    return batches * settings.batch_size, (batches + size) * settings.batch_size


def steps_in_an_epoch(settings, num_rows):
    """The fewest steps that take num_rows rows, as many as the data has."""
    return bisect.bisect_left(
        range(num_rows), num_rows, key=lambda step: rows_of_step(settings, step)[0]
    )


def decay_progress(settings, step, seconds):
    """The part of the learning-rate schedule that has passed: steps after the warm-up up to
    lr_decay_iters, or where that is 0, the clock up to max_minutes."""
    if not settings.lr_decay_iters:
        return seconds / (60 * settings.max_minutes)
    decay_steps = max(1, settings.lr_decay_iters - settings.warmup_iters)
    return (step - settings.warmup_iters) / decay_steps


def run_progress(step, seconds, max_iters, max_minutes):
    """The part of the run that is done, 0..1, by the nearer of its limits; 0 is no limit."""
    by_steps = step / max_iters if max_iters else 0.0
    by_time = seconds / (60 * max_minutes) if max_minutes else 0.0
    return max(by_steps, by_time)


def time_left(seconds, progress):
    """The time to go, a timedelta, at the speed so far: the seconds spent made this progress."""
    return timedelta(seconds=max(0, round(seconds * (1 / max(progress, 1e-9) - 1))))


def evaluation_is_due(state, settings, progress):
    """True at every eval_interval steps and at the end; never at step 0, and never twice."""
    regular = state["step"] % settings.eval_interval == 0
    return state["step"] > state["last_evaluation"] and (regular or progress >= 1)


def save_is_due(step, settings, unsaved_seconds):
    """True at save_interval's steps, or by default after ten minutes, between evaluations."""
    if settings.save_interval:
        return step % settings.save_interval == 0 or is_kept(step, settings)
    return unsaved_seconds > SAVE_SECONDS or is_kept(step, settings)


def is_kept(step, settings):
    """True at steps 1, 2, 4, 8, ... where their checkpoints are to stay."""
    return settings.save_steps == "log" and step & (step - 1) == 0
