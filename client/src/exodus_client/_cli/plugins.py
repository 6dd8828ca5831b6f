"""Commands of other distributions: entry points of the group `exodus.commands`.

An entry point names a `typer.Typer`, or what can be called as one: `command(args=[...], prog_name="exodus NAME")`. It
is loaded when the command runs: others start no later for it, and work where it is broken.
"""

# No `from __future__ import annotations`: typer reads the annotations.
from importlib.metadata import EntryPoint, entry_points

import typer

from exodus_client._cli.command_line import BAD_ARGUMENTS

GROUP = "exodus.commands"

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def add_plugins(app: typer.Typer) -> None:
    """Adds a command for each entry point, in the order of their names; none takes the name of another."""
    taken = {command.name or _name(command.callback) for command in app.registered_commands}
    taken |= {group.name or "" for group in app.registered_groups}
    for point in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        if point.name not in taken:
            taken.add(point.name)
            _add(app, point)


def _name(callback: object) -> str:
    return getattr(callback, "__name__", "").replace("_", "-")


def _add(app: typer.Typer, point: EntryPoint) -> None:
    of = point.dist.name if point.dist is not None else point.value

    def run(context: typer.Context) -> None:
        try:
            command = point.load()
        except (ImportError, AttributeError) as error:
            typer.echo(f"exodus: the command {point.name} of {of} cannot be loaded: {error}", err=True)
            raise typer.Exit(BAD_ARGUMENTS) from error
        command(args=context.args, prog_name=f"exodus {point.name}")

    summary = f"A command of {of}: exodus {point.name} --help."
    app.command(point.name, help=summary, context_settings=_PASSED_ON, add_help_option=False)(run)
