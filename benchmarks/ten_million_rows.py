"""Ten million rows of 16 columns, streamed from npy and from Parquet: peak memory and rows per second.

Each file is fitted by the command line in a separate process, which measures the memory of the fit alone; then one
process is killed half-way and resumed. The files take about 1.3 GB in a temporary folder, or in the folder given as
first argument.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import report
from safetensors.torch import load_file

from pplgen.storage.checkpoint import NAME

N, D, K, PIECE = 10_000_000, 16, 10, 100_000
OPTIONS = ["--stream", "--components", str(K), "--batch-size", "10000", "--steps", "2000", "--draws", "100"]


def write(folder: Path) -> list[Path]:
    """Write the same rows as npy, and as Parquet in row groups of 100,000."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.6 * torch.randn(K, D, generator=generator)
    factors = torch.randn(K, D, D, generator=generator) / D**0.5 + 0.5 * torch.eye(D)
    paths = [folder / "rows.npy", folder / "rows.parquet"]
    array = np.lib.format.open_memmap(paths[0], mode="w+", dtype="float32", shape=(N, D))
    names = [f"x{column}" for column in range(D)]
    with pq.ParquetWriter(paths[1], pa.schema([(name, pa.float32()) for name in names])) as parquet:
        for start in range(0, N, PIECE):
            z = torch.randint(K, (PIECE,), generator=generator)
            x = torch.randn(PIECE, D, generator=generator)
            for k in range(K):
                x[z == k] = centres[k] + x[z == k] @ factors[k].T
            array[start : start + PIECE] = x.numpy()
            parquet.write_table(pa.table(dict(zip(names, x.T.numpy(), strict=True))), row_group_size=PIECE)
    array.flush()
    return paths


def command(path: Path) -> list[str]:
    """Return the command that fits a file."""
    return [sys.executable, "-m", "pplgen", "fit", "gaussian-mixture", str(path), "--out", f"{path}.run", *OPTIONS]


def steps_taken(output: str) -> int:
    """Parse the number of steps from the summary."""
    line = next(line for line in output.splitlines() if " steps of " in line)
    return int(line.split()[0].replace(",", ""))


def main() -> None:
    """Write the files, fit each, and kill and resume one."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        rows, raw = {}, {}
        paths = write(Path(folder))
        for path in paths:
            started = time.perf_counter()
            process = subprocess.Popen(command(path), stdout=subprocess.PIPE, text=True)
            output = process.communicate()[0]
            seconds = time.perf_counter() - started
            # the maximum over child processes so far; each file needs more than the ones before it
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            taken = 10_000 * steps_taken(output)
            figures = (f"{peak:.2f}", f"{seconds:.0f}", f"{taken:,}", f"{taken / seconds:,.0f}")
            rows[f"pplgen, {path.suffix}"] = figures
            raw[path.suffix] = {"peak_gib": peak, "seconds": seconds, "rows": taken}
        rows["pplgen, .npy, killed and resumed"] = killed_and_resumed(paths[0])
        columns = ("peak memory so far, GiB", "total seconds", "rows processed", "rows/s overall")
        report("Ten million rows of 16 columns, K = 10, full covariances", columns, rows, raw)


def killed_and_resumed(path: Path) -> tuple[str, ...]:
    """Kill a fit after its first checkpoint and resume it; return the row of the table."""
    run = Path(f"{path}.again")
    arguments = [*command(path)[: -len(OPTIONS) - 1], str(run), *OPTIONS]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while not (run / NAME).exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = len(load_file(run / NAME)["history0"])
    started = time.perf_counter()
    output = subprocess.run([*arguments, "--resume"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return f"from step {reached}", f"{time.perf_counter() - started:.0f}", f"to step {steps_taken(output)}", ""


if __name__ == "__main__":
    main()
