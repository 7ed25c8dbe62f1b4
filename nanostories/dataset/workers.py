"""A pool of processes that all run one function on the blocks of a source.

with worker_pool(function, workers=0) as run:
    for block, result in run(source.blocks()): ...
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from configs import UserError

_function = None  # what a worker process calls


def cpu_count():
    """How many CPU cores this process may use."""
    affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(function, workers):
    """Give a function: (blocks, *args) -> an iterator of (block, function(block, *args)), in order;
    blocks are read only a little ahead. function: picklable, sent once to each worker. workers:
    processes, 0 for one a core; 1 runs it in this process."""
    workers = workers or cpu_count()
    if workers == 1:
        yield lambda blocks, *args: ((block, function(block, *args)) for block in blocks)
        return
    # Spawned, as the threads that rustbpe leaves behind do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (function,))

    def run(blocks, *args):
        blocks, todo = itertools.tee(blocks)
        results = in_order(lambda block: pool.submit(_call, block, *args), todo, 2 * workers + 64)
        return zip(blocks, results, strict=True)

    try:
        # Started while SIGINT is ignored, the workers never see Ctrl-C; this process handles it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(workers):
            pool.submit(os.getpid)  # each starts a process, as none is idle yet
        signal.signal(signal.SIGINT, handler)
        yield run
    except BrokenProcessPool:
        raise UserError("a worker died, probably of too little memory: lower --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(submit, items, ahead):
    """Yield the results of the Futures submit(item), in order, `ahead` of them at work."""
    pending = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _call(*args):
    return _function(*args)


def _start_worker(function):
    global _function
    _function = function

    def end_with_parent():  # else the workers of a killed command would wait for blocks forever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
