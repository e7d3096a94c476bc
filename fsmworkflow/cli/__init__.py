"""The command line. It reads and steers through the store, and drives runs only in `run`, `resume` and `work`.

Exit codes: 0 done, and well; 1 not well (`health`, an error that `doctor` or `check` found, a run that failed, an event
that was rejected); 2 a wrong command, or what cannot be loaded; 3 an error of fsmworkflow, such as a store that is
away; 70 any other error; 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from fsmworkflow.cli import definitions, runs, schedules, steering, streams, working
from fsmworkflow.cli import store as kept
from fsmworkflow.cli.answers import clean
from fsmworkflow.cli.targets import line
from fsmworkflow.errors import FSMWorkflowError

__all__ = ["main"]

REFUSED, BROKEN, ENDED_BY = 3, 70, 128


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. An error is one line on stderr, with --debug its traceback."""
    words = sys.argv[1:] if words is None else words
    try:
        with cli.make_context("fsmworkflow", list(words)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        if "--debug" in words:
            traceback.print_exc()
        _complain(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ENDED_BY + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ENDED_BY + signal.SIGPIPE
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        known = isinstance(error, FSMWorkflowError)
        _complain(f"{line(error)}" if known else f"{type(error).__name__}: {line(error)}")
        return REFUSED if known else BROKEN


def _complain(text: str) -> None:
    click.echo(f"{click.style('error', fg='red', bold=True)}: {clean(text)}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fsmworkflow")
def cli() -> None:
    """Drive the runs of your workflows, and see how they are.

    ENGINE says where your Engine is: app:engine is `engine` in app.py, sought from this directory on; it may be a
    function that makes one. Or it is a file in YAML or JSON, or a Workflow, with --store URL. Where no definition is
    needed the URL of the store will do: sqlite:///app.db.
    """


for group in (runs, steering, working, kept, schedules, definitions, streams):
    for command in group.COMMANDS:
        cli.add_command(command)
