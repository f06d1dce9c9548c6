"""The command line: `salus COMMAND`. Each command is a thin face on a function of the same name.

Exit codes: 0 done; 2 the user's mistake, one clear message; 3 finished, but some cases failed.
"""

import os
import select
import signal
import sys
from contextlib import suppress
from types import FrameType

import typer

from salus.cli import weights
from salus.cli.benchmark import benchmark
from salus.cli.calibrate import calibrate
from salus.cli.combine import combine
from salus.cli.datasets import datasets
from salus.cli.demo import demo
from salus.cli.evaluate import evaluate
from salus.cli.latent import latent
from salus.cli.methods import methods
from salus.cli.plan import plan
from salus.cli.probe import probe
from salus.cli.screen import screen
from salus.cli.train import train

app = typer.Typer(
    help="Learn what healthy looks like; find what does not. For research, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, plan, train, combine, screen, evaluate, calibrate, probe, latent, benchmark, methods, datasets):
    app.command()(command)
app.add_typer(weights.app, name="weights")


INTERRUPTED = "Interrupted. What is finished is kept; the same command goes on (`train` with --resume)."


def ended(number: int, frame: FrameType | None) -> None:
    """A word before SIGTERM does what it does without us."""
    signal.signal(number, signal.SIG_DFL)
    with suppress(OSError, ValueError):  # nobody may be there to read it
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"\n{INTERRUPTED}\n".encode())  # a print could be in the middle of another
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # a container's first process does not die of it


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, ended)
    try:
        app()
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from salus.core.errors import SalusError  # not above: numpy comes with it, which `--help` has no use for

        if not isinstance(error, SalusError):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
