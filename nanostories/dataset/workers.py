"""
A pool of processes that all run one function on the blocks of a source.

    with worker_pool(Encoder(tokenizer), workers=0) as encode:
        for block, (stories, counts) in encode(source.blocks()): ...
"""

import contextlib
import functools
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
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(function, workers):
    """
    Give a generator function: (blocks, *args) -> (block, function(block, *args)), in order.

    function: picklable, sent once to each worker. workers: processes, 0 for one a core; 1 runs it
    in this process. Blocks are read only a little ahead. Raises UserError when a worker dies.
    """
    workers = workers or cpu_count()
    if workers == 1:
        yield lambda blocks, *args: ((block, function(block, *args)) for block in blocks)
        return
    # Spawned, as the threads that rustbpe leaves behind do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (function,))
    try:
        # Started while SIGINT is ignored, the workers never see Ctrl-C; this process handles it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(workers):
            pool.submit(os.getpid)  # each starts a process, as none is idle yet
        signal.signal(signal.SIGINT, handler)
        yield functools.partial(_in_order, pool, 2 * workers + 64)
    except BrokenProcessPool:
        raise UserError("a worker died, probably of too little memory: lower --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool, ahead, blocks, *args):
    """Keep `ahead` blocks submitted; each result that is taken lets one more in."""
    pending = deque()
    for block in blocks:
        pending.append((block, pool.submit(_call, block, *args)))
        if len(pending) == ahead:
            block, future = pending.popleft()
            yield block, future.result()
    while pending:
        block, future = pending.popleft()
        yield block, future.result()


def _call(*args):
    return _function(*args)


def _start_worker(function):
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Without this the workers of a killed command would wait forever for more blocks."""
    multiprocessing.parent_process().join()
    os._exit(1)
