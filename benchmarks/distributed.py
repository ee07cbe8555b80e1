"""Rows split between two processes, compared with one: a mixture step by number of rows, and the all-reduce alone.

Each process has one thread. The first times its contenders as every other benchmark does, and before each turn
broadcasts what the second does meanwhile: the same, or nothing. "Half the rows, both processes" is a step without the
all-reduce while the other process is equally busy, which separates contention from communication.

Run as ``benchmarks/distributed.py [ROWS ...]``, 10,000 rows by default.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import compare, report
from pplgen.models import GaussianMixture

from pplgen.compiler.graph import tensors_of, trace
from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import Shard, shard_rows
from pplgen.inference.engine import Engine, State
from pplgen.inference.minibatches import batching
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

SIZES = (100, 10_000, 1_000_000)
"""Numbers of elements of the timed all-reduces."""
STEPS, EXCHANGES = 100, 50
STOP = -1


def stepping(pair: Pair, ranks: Ranks, shard: Shard | None) -> Callable[[], int]:
    """Return a function that takes compiled steps, with or without other ranks, on all rows or a shard."""
    with pair.isolated():
        batches, scale = batching(pair, None, seed=0, shard=shard)
        data = next(batches)
        graph = trace(pair, pair.elbo(), data, scale)
        vectors = graph.pack(pair.snapshot())[None]
    state, rates = State.start(vectors), vectors.new_full((1, 1), 0.02)
    engine = Engine(graph, state, tensors_of(data), ranks=ranks)
    engine.compile(rates)

    def run() -> int:
        engine.run(state, rates, STEPS)
        return STEPS

    run()
    return run


def exchanging(size: int) -> Callable[[], int]:
    """Return a function that averages ``size`` numbers over ranks."""
    values = torch.randn(size)

    def run() -> int:
        for _ in range(EXCHANGES):
            dist.all_reduce(values)
            values.div_(2)
        return EXCHANGES

    run()
    return run


def named_part(index: int, run: Callable[[], int]) -> Callable[[], int]:
    """Return a contender that runs with the second process running its part."""

    def both() -> int:
        dist.broadcast(torch.tensor([index]), 0)
        return run()

    return both


def follow(parts: list[Callable[[], int]]) -> None:
    """Run the parts that the first process broadcasts, until it broadcasts ``STOP``."""
    command = torch.zeros(1, dtype=torch.long)
    while True:
        dist.broadcast(command, 0)
        if int(command) == STOP:
            return
        parts[int(command)]()


def time_steps(num_rows: int, ranks: Ranks) -> None:
    """Time steps on ``num_rows`` rows; the first process writes the results."""
    with seeded(0):
        x = torch.randn(num_rows, 8) + 3.0 * torch.randn(5, 8)[torch.randint(5, (num_rows,))]
        pair = Pair.of_story(GaussianMixture(5, 8), x)
    shard = shard_rows(pair, ranks)
    together, half = stepping(pair, ranks, shard), stepping(pair, SINGLE_PROCESS, shard)
    if not ranks.first:
        follow([together, half])
        return
    whole = stepping(pair, SINGLE_PROCESS, None)
    one, two = "one process, all rows", "two processes, half the rows each"
    contenders = {
        one: whole,
        two: named_part(0, together),
        "half the rows, both processes, no all-reduce": named_part(1, half),
        "half the rows, one process": half,
    }
    figures = compare(f"Two processes, a mixture of {num_rows:,} rows x 8, 5 components", contenders)
    dist.broadcast(torch.tensor([STOP]), 0)
    print(f"{num_rows:,} rows: throughput of two processes over one, {figures[one] / figures[two]:.2f}")


def time_exchanges(ranks: Ranks) -> None:
    """Time the all-reduce alone; the first process writes the results."""
    parts = [exchanging(size) for size in SIZES]
    if not ranks.first:
        follow(parts)
        return
    figures = {}
    for index, size in enumerate(SIZES):
        run, seconds = named_part(index, parts[index]), []
        for _ in range(15):
            started = time.perf_counter()
            calls = run()
            seconds.append((time.perf_counter() - started) / calls)
        figures[f"{size:,} numbers"] = sorted(seconds)[len(seconds) // 2] * 1e6
    dist.broadcast(torch.tensor([STOP]), 0)
    rows = {name: (f"{value:.0f}",) for name, value in figures.items()}
    report("All-reduce between two processes", ("µs each",), rows, figures, note="gloo, one machine; medians of 15")


def work(rank: int, store: str, sizes: list[int]) -> None:
    """Run one of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ranks = Ranks.current()
    for num_rows in sizes:
        time_steps(num_rows, ranks)
    time_exchanges(ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    sizes = [int(word) for word in sys.argv[1:]] or [10_000]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (f"{folder}/store", sizes), nprocs=2)
