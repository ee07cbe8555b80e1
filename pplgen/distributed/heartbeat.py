"""Ranks that die or stop are noticed: every rank beats, each listens to its neighbour, and all are told."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

__all__ = ["Heartbeat", "RankLost"]

INTERVAL = 1.0
"""Seconds between two beats."""
TIMEOUT = 30.0
"""Seconds without a beat after which a rank counts as lost."""
GRACE = 10.0
"""Seconds from then on after which a process that still waits for the lost rank is ended, as some waits only are."""

_LOST = "lost"


class RankLost(RuntimeError):
    """Another rank has died or stopped, so that this one cannot go on; the message is one sentence."""


class Heartbeat:
    """A thread that beats for one rank and listens to the next one, through the store of the process group.

    Beats go round a ring, so that the store bears a few requests a second of each rank, however many there are.

    Parameters
    ----------
    store
        A ``torch.distributed.Store`` that all ranks share; its keys are prefixed.
    prefix
        The same on all ranks, and of this watch alone.
    rank, size
        Whose thread this is, and of how many.
    """

    def __init__(self, store: Any, prefix: str, rank: int, size: int) -> None:
        # a store that is waited on elsewhere answers nothing else until then
        self._store = store.clone() if hasattr(store, "clone") else store
        self._prefix, self._rank, self._size = prefix, rank, size
        self._neighbour = (rank + 1) % size
        self._beats, self._heard = 0, time.monotonic()
        self._over, self._decided = threading.Event(), threading.Event()
        self._verdict = ""
        self._thread = threading.Thread(target=self._run, name="pplgen-heartbeat", daemon=True)
        self._thread.start()

    def failure(self) -> str:
        """Wait for what has become of the others, as long as it takes to count one as lost; empty if nothing has."""
        self._decided.wait(TIMEOUT + 5 * INTERVAL)
        return self._verdict

    def stop(self, why: str = "") -> None:
        """End the watch, telling the other ranks why where this one cannot go on."""
        self._over.set()
        self._thread.join(GRACE)
        with contextlib.suppress(RuntimeError):  # the store may have gone first
            self._store.set(self._key(f"left/{self._rank}"), why)
            if why and not self._verdict:
                self._tell(f"rank {self._rank} stopped: {why}")

    def _run(self) -> None:
        """Beat and listen until the watch is over or a rank is lost; then end a process that goes on waiting."""
        while not self._verdict:
            try:
                self._verdict = self._look()
            except RuntimeError:
                self._verdict = "the rank that keeps the group's store, rank 0 as a rule, was lost, so the run ends"
            if self._over.wait(0 if self._verdict else INTERVAL):
                return
        self._decided.set()
        if not self._over.wait(GRACE):
            sys.stderr.write(f"pplgen: {self._verdict}\n")
            sys.stderr.flush()
            os._exit(1)

    def _look(self) -> str:
        """Beat once, listen once; return what has become of another rank, if anything has."""
        self._store.add(self._key(self._rank), 1)
        if self._store.check([self._key(_LOST)]):
            return str(self._store.get(self._key(_LOST)).decode())
        if self._neighbour == self._rank:
            return ""
        if self._store.check([self._key(f"left/{self._neighbour}")]):
            self._neighbour, self._beats, self._heard = (self._neighbour + 1) % self._size, 0, time.monotonic()
            return ""
        beats = self._store.add(self._key(self._neighbour), 0)
        if beats != self._beats:
            self._beats, self._heard = beats, time.monotonic()
        if time.monotonic() - self._heard <= TIMEOUT:
            return ""
        what = "has not been heard of" if beats else "has not joined"
        return self._tell(f"rank {self._neighbour} {what} for {TIMEOUT:.0f} seconds, so the run ends")

    def _tell(self, verdict: str) -> str:
        """Let all ranks know."""
        self._store.set(self._key(_LOST), verdict)
        return verdict

    def _key(self, name: object) -> str:
        return f"{self._prefix}/{name}"
