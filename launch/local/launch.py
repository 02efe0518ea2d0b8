"""Starts one training as N processes on this machine, and ends all of them at the first failure.

  python launch/local/launch.py --processes 2 --devices 2 -- \\
      fgkd train --config configs/classify_birds.py --workdir runs/birds
  python launch/local/launch.py --processes 8 --gpus 1 -- fgkd train ...

Every line of output begins with the rank that printed it. The exit status is that of the process
that failed first; 75 where the run was asked to stop and can be continued. SIGTERM and SIGINT are
passed on to all.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

POLL_SECONDS = 0.05


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many processes")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--devices", type=int, help="CPU devices of each; others are left alone")
    kinds.add_argument("--gpus", type=int, help="GPUs of each, all of the machine by one process")
    parser.add_argument("--port", type=int, help="of the coordinator; a free one by default")
    parser.add_argument(
        "--grace", type=float, default=10.0, help="seconds from the first failure to SIGKILL"
    )
    parser.add_argument("command", nargs="+", help="what every process runs, after --")
    options = parser.parse_args(arguments)
    for name in ("processes", "devices", "gpus"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    return options


def free_port() -> int:
    """Finds a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(options: argparse.Namespace, rank: int, port: int) -> subprocess.Popen[bytes]:
    """Starts one process, as the leader of a group of its own."""
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(rank),
        "PYTHONUNBUFFERED": "1",
    }
    if options.devices:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices)}
    if options.gpus:
        first = rank * options.gpus
        own = range(first, first + options.gpus)
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, own))
    return subprocess.Popen(
        options.command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def copy_lines(rank: int, process: subprocess.Popen[bytes]) -> None:
    """Prints what a process prints, with its rank before each line."""
    for line in process.stdout or ():
        sys.stdout.buffer.write(f"[{rank}] ".encode() + line)
        sys.stdout.buffer.flush()


def send(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    """Sends a signal to every process that still runs, and to its children."""
    for process in processes:
        if process.poll() is None:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue


def wait(processes: list[subprocess.Popen[bytes]], *, grace: float) -> int:
    """Waits for all; from the first failure on, no longer than the grace.

    Returns:
      The first exit status that is not 0; 0 where there is none.
    """
    first, deadline = 0, float("inf")
    while None in (statuses := [process.poll() for process in processes]):
        failed = [status for status in statuses if status]
        if failed and not first:
            first, deadline = failed[0], time.monotonic() + grace
        if time.monotonic() > deadline:
            send(processes, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return first or next((one.returncode for one in processes if one.returncode), 0)


def main(arguments: list[str]) -> int:
    """Runs the launcher; returns its exit status."""
    options = parse(arguments)
    port = options.port or free_port()
    processes: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: send(processes, number))
    try:
        for rank in range(options.processes):
            processes.append(start(options, rank, port))
        threads = [
            threading.Thread(target=copy_lines, args=pair, daemon=True)
            for pair in enumerate(processes)
        ]
        for thread in threads:
            thread.start()
        status = wait(processes, grace=options.grace)
        for thread in threads:
            thread.join(timeout=5)
    except OSError as error:
        print(f"launch: error: cannot run {options.command[0]}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        send(processes, signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
