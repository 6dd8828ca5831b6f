"""Entry point of the command `exodus`, which needs the extra `cli`."""

import sys


def main() -> None:
    """Run the command line, or say what is missing for it."""
    try:
        from exodus_client._cli.command_line import printed
        from exodus_client._cli.commands import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("exodus: the command line needs typer: pip install 'exodus-client[cli]'")
    with printed():  # the help, for example
        app()
