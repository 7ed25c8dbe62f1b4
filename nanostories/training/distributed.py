"""Several processes that train together: their ranks, their sums, and a signal that stops them all.

    with process_group():                          # does nothing where torchrun started no ranks
        print0(f"{world_size()} rank(s)")          # printed once, by rank 0
        [seconds] = all_reduce_max(seconds)        # the same number on every rank

Ranks are torch.distributed's: NCCL between GPUs, gloo between CPUs and for the numbers the hosts
agree on, so that agreeing never waits for a GPU.
"""

import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist


@contextlib.contextmanager
def process_group():
    """Join the ranks that torchrun started, if it did, and leave them at the end."""
    if "RANK" not in os.environ:
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    yield
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone


def _initialized():
    return dist.is_available() and dist.is_initialized()


def rank():
    """This process's number among the ranks, 0 where it is alone."""
    return dist.get_rank() if _initialized() else 0


def world_size():
    """How many processes train together."""
    return dist.get_world_size() if _initialized() else 1


def barrier():
    """Return when every rank has come here."""
    all_reduce_sum(0)


def print0(*words):
    """print, on rank 0 alone. A lost output, of a closed terminal or `| head`, stops no run."""
    if rank() == 0:
        try:
            print(*words, flush=True)
        except BlockingIOError:
            pass  # the next print sends it, too
        except OSError:
            sys.stdout = None  # to which print writes nothing


def _all_reduce(operation, *numbers):
    """Each number's sum or maximum over the ranks, a list of floats."""
    numbers = torch.tensor(numbers, dtype=torch.float64)
    if _initialized():
        dist.all_reduce(numbers, getattr(dist.ReduceOp, operation))
    return numbers.tolist()


all_reduce_sum, all_reduce_max = (functools.partial(_all_reduce, name) for name in ("SUM", "MAX"))


def all_gather(items):
    """The lists of all ranks, one after the other by rank, as one list on each of them."""
    if not _initialized():
        return list(items)
    lists = [None] * world_size()
    dist.all_gather_object(lists, list(items))
    return [item for part in lists for item in part]


class StopSignal:
    """Within `with StopSignal() as stop:`, a signal to end only counts in `stop.received`.

    A second Ctrl-C, or another signal two seconds later, ends the process at once; until then it is
    the same one, which torchrun, systemd and timeout send twice. torchrun kills 30 seconds later.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGCONT")  # Windows has the first two

    def __init__(self, message="stopping after this step; once more to stop at once", exits=True):
        self.message, self.exits, self.received, self.previous = message, exits, 0, {}
        self.continued, self.paused, self.last, self.shortest = False, 0.0, 0.0, math.inf

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for name in self.NAMES:
                number = getattr(signal, name, None)
                if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
                    self.previous[number] = signal.signal(number, self._handle)  # not under nohup
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def awake(self, now):
        """`now`, in seconds, less the pauses of Ctrl-Z. Called after every step; one with a pause
        counts as the shortest so far."""
        if self.continued:
            self.paused += max(0.0, now - self.last - self.shortest)
        else:
            self.shortest = min(self.shortest, now - self.last)
        self.last, self.continued = now, False
        return now - self.paused

    def _handle(self, number, _frame):
        if signal.Signals(number).name == "SIGCONT":
            self.continued = True
        elif not self.received:
            self.received, self.first = 1, (number, time.monotonic())
            if rank() == 0:  # not with print: a signal may come in the middle of one
                with contextlib.suppress(OSError):  # the terminal may be gone
                    os.write(2, f"\n{self.message}\n".encode())
        else:
            ctrl_c_twice = number == self.first[0] == signal.SIGINT
            if time.monotonic() - self.first[1] > (0.1 if ctrl_c_twice else 2):
                if self.exits:
                    os._exit(128 + number)
                self.received += 1
