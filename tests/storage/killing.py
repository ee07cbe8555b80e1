"""Kills one command again and again, resumes it after each time, and tells what happened as JSON.

Python and torch are imported once, here; each life of the command is a process forked from this one, with one thread.
Called with a folder: ``whole`` is the run that nobody disturbs, ``killed`` the other.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import h5netcdf  # noqa: F401
import torch
from safetensors import safe_open

import pplgen.fitting.compare
import pplgen.fitting.fit
import pplgen.fitting.load
import pplgen.inference.batched_restarts
import pplgen.plots.fit  # noqa: F401
from pplgen.cli.main import main
from pplgen.inference.training_state import TrainingState
from pplgen.storage import atomic, checkpoint, run_folder

KINDS = ("window", "window", "window", "fsync", "replace", "write")
"""How all lives end but the last two, which die as the run is written."""
WINDOWS = 13
"""Windows of steps: more than all lives together keep before they are killed, two each."""
COMMAND = ["pplgen", "fit", "ppca", "faithful", "--latents", "1", "--batch-size", "50", "--seed", "1"]
COMMAND += ["--steps", str(100 * WINDOWS), "--patience", "1000000", "--compile", "graph", "--draws", "4"]
COMMAND += ["--checkpoint-every", "1e-6"]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def after_windows(number, part):
    """Die a part of a window's time after so many windows, or of half a second after birth."""
    seen, last = [0], [time.monotonic()]
    advance = TrainingState.advance
    if number == 0:
        threading.Timer(0.5 * part, die).start()

    def advance_and_watch(self, *arguments, **options):
        advance(self, *arguments, **options)
        seen[0] += 1
        now = time.monotonic()
        if seen[0] == max(number, 1):
            threading.Timer(part * (now - last[0]), die).start()
        if seen[0] == 3:
            die()
        last[0] = now

    TrainingState.advance = advance_and_watch


def at_call(name, number):
    """Die in place of the so-manieth fsync or replace: a checkpoint has two of each, but the first has one replace."""
    seen, call = [0], getattr(os, name)

    def call_or_die(*arguments):
        seen[0] += 1
        if seen[0] == number:
            die()
        return call(*arguments)

    setattr(os, name, call_or_die)


def half_written(number, part):
    """Die when a part of the so-manieth checkpoint is written."""
    seen, opened = [0], atomic.Path.open

    def open_and_die(path, mode="r", **options):
        file = opened(path, mode, **options)
        if mode == "xb":
            seen[0] += 1
            if seen[0] == number:
                write = file.write

                class Dying:
                    def __enter__(self):
                        return self

                    def write(self, content):
                        write(content[: int(part * len(content))])
                        file.flush()
                        die()

                    def __exit__(self, *_):
                        pass

                return Dying()
        return file

    atomic.Path.open = open_and_die


def at_run_file(number):
    """Die before the so-manieth file of the run moves into its place."""
    seen, replace = [0], os.replace

    def replace_or_die(path, to):
        if Path(to).name in run_folder.RUN_FILES:
            seen[0] += 1
            if seen[0] == number:
                die()
        replace(path, to)

    os.replace = replace_or_die


def ways(random_numbers):
    """Choose how each life ends: at a moment of a window, inside a checkpoint, or as the run is written."""
    draw = random_numbers
    for kind in draw.sample(KINDS, len(KINDS)):
        if kind == "window":
            number, part = draw.randrange(3), draw.random()
            yield f"{part:.2f} windows after window {number}", lambda n=number, p=part: after_windows(n, p)
        elif kind == "write":
            number, part = draw.randint(1, 3), draw.random()
            yield f"at {part:.2f} of write {number}", lambda n=number, p=part: half_written(n, p)
        else:
            number = draw.randint(1, 5)
            yield f"at {kind} {number}", lambda n=number, k=kind: at_call(k, n)
    for number in draw.sample(range(1, 5), 2):
        yield f"at file {number} of the run", lambda n=number: at_run_file(n)


def life(folder, arguments, way):
    """Run the command in a process of its own; return how it ended and what it said."""
    said = folder / "said"
    process = os.fork()
    if not process:
        code = 70
        try:
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.argv = [*COMMAND, *arguments]
            way()
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"killed": killed, "code": os.waitstatus_to_exitcode(status), "said": said.read_text()}


def steps_kept(run):
    """Return the steps of the newest checkpoint, zero where there is none."""
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        if (run / name).exists():
            with safe_open(run / name, framework="pt") as file:
                return json.loads(file.metadata()["facts"])["facts"]["taken"]
    return 0


def tell(folder):
    """Run and kill, and print what happened."""
    torch.set_num_threads(1)
    gc.freeze()  # what is imported is not copied into each life by its first collection
    began = time.monotonic()
    whole = life(folder, ["--out", str(folder / "whole")], lambda: None)
    lives = []
    for number, (how, way) in enumerate(ways(random.Random(8))):
        run = folder / "killed"
        ended = life(folder, ["--out", str(run), *(["--resume"] if number else [])], way)
        lives.append({"how": how, **ended, "kept": steps_kept(run), "at": time.monotonic() - began})
    last = life(folder, ["--out", str(run), "--resume"], lambda: None)
    print(json.dumps({"whole": whole, "lives": lives, "last": last, "took": time.monotonic() - began}))


if __name__ == "__main__":
    tell(Path(sys.argv[1]))
