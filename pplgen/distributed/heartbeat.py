"""Detect ranks that die or stop: each rank monitors the heartbeat of the next one and reports failures to all."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

__all__ = ["Heartbeat", "RankLost"]

INTERVAL = 1.0
"""Seconds between heartbeats."""
TIMEOUT = 30.0
"""Seconds without a heartbeat after which a rank is considered lost."""
GRACE = 10.0
"""Further seconds after which a process that still waits for the lost rank is terminated."""

_LOST = "lost"


class RankLost(RuntimeError):
    """Another rank has died or stopped, so that this one cannot continue; the message is one sentence."""


class Heartbeat:
    """A thread that sends the heartbeat of one rank and monitors the next, through the store of the process group.

    Ranks form a ring, so that each makes a few requests per second to the store, regardless of their number.

    Parameters
    ----------
    store
        A ``torch.distributed.Store`` that all ranks share; its keys are prefixed.
    prefix
        Key prefix: the same on all ranks, unique to this heartbeat.
    rank, size
        Rank of this process, and number of ranks.
    """

    def __init__(self, store: Any, prefix: str, rank: int, size: int) -> None:
        # a store blocks while another thread waits on it
        self._store = store.clone() if hasattr(store, "clone") else store
        self._prefix, self._rank, self._size = prefix, rank, size
        self._neighbour = (rank + 1) % size
        self._beats, self._last_heard = 0, time.monotonic()
        self._stopped, self._decided = threading.Event(), threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._run, name="pplgen-heartbeat", daemon=True)
        self._thread.start()

    def failure(self) -> str:
        """Wait until a rank could be detected as lost; return what failed, empty if nothing did."""
        self._decided.wait(TIMEOUT + 5 * INTERVAL)
        return self._failure

    def stop(self, reason: str = "") -> None:
        """Stop the heartbeat; a ``reason`` reports to the other ranks that this one failed."""
        self._stopped.set()
        self._thread.join(GRACE)
        with contextlib.suppress(RuntimeError):  # the store may be gone already
            self._store.set(self._key(f"left/{self._rank}"), reason)
            if reason and not self._failure:
                self._report(f"rank {self._rank} stopped: {reason}")

    def _run(self) -> None:
        """Send and monitor heartbeats until stopped or a rank is lost; then terminate a process that keeps waiting."""
        while not self._failure:
            try:
                self._failure = self._beat()
            except RuntimeError:
                self._failure = "the rank that hosts the group's store, usually rank 0, was lost, so the run ends"
            if self._stopped.wait(0 if self._failure else INTERVAL):
                return
        self._decided.set()
        if not self._stopped.wait(GRACE):
            sys.stderr.write(f"pplgen: {self._failure}\n")
            sys.stderr.flush()
            os._exit(1)

    def _beat(self) -> str:
        """Send one heartbeat and check the next rank; return what failed, if anything."""
        self._store.add(self._key(self._rank), 1)
        if self._store.check([self._key(_LOST)]):
            return str(self._store.get(self._key(_LOST)).decode())
        if self._neighbour == self._rank:
            return ""
        if self._store.check([self._key(f"left/{self._neighbour}")]):
            self._neighbour, self._beats, self._last_heard = (self._neighbour + 1) % self._size, 0, time.monotonic()
            return ""
        beats = self._store.add(self._key(self._neighbour), 0)
        if beats != self._beats:
            self._beats, self._last_heard = beats, time.monotonic()
        if time.monotonic() - self._last_heard <= TIMEOUT:
            return ""
        state = "has sent no heartbeat" if beats else "has not joined"
        return self._report(f"rank {self._neighbour} {state} for {TIMEOUT:.0f} seconds, so the run ends")

    def _report(self, failure: str) -> str:
        """Report a failure to all ranks."""
        self._store.set(self._key(_LOST), failure)
        return failure

    def _key(self, name: object) -> str:
        return f"{self._prefix}/{name}"
