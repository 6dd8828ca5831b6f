"""Commands that other distributions add to `exodus`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from exodus_client._cli.plugins import GROUP, add_plugins

Install = Callable[..., None]

COMMAND = """
import typer
app = typer.Typer()

@app.command()
def greet(name: str, loud: bool = False) -> None:
    \"\"\"Greet somebody.\"\"\"
    typer.echo(f"hello {name.upper() if loud else name}")
    raise typer.Exit(7)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution of one module that names the commands."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(source: str, **commands: str) -> None:
        name = f"greeting_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(source)
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{command} = {name}{where}" for command, where in commands.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))

    return written


def exodus(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(ping)
    app.command("second")(ping)
    add_plugins(app)
    return CliRunner().invoke(app, list(arguments))


def ping() -> None:
    """A command of exodus itself."""
    typer.echo("pong")


def test_a_plugin_gets_its_arguments_and_its_exit_code_is_that_of_exodus(install: Install) -> None:
    install(COMMAND, greet=":app")
    result = exodus("greet", "--loud", "you")
    assert (result.stdout, result.exit_code) == ("hello YOU\n", 7)


def test_help_of_a_plugin_is_its_own(install: Install) -> None:
    install(COMMAND, greet=":app")
    help_text = exodus("greet", "--help").stdout
    assert "exodus greet" in help_text
    assert "Greet somebody." in help_text


def test_help_of_exodus_names_plugins_without_loading_them(install: Install) -> None:
    install("raise SystemExit('loaded')", greet=":app")
    result = exodus("--help")
    assert result.exit_code == 0
    assert "greet" in result.stdout
    assert "A command of greeting" in result.stdout


@pytest.mark.parametrize(
    ("source", "where", "reason"),
    [
        ("import something_that_is_not_installed", ":app", "No module named 'something_that_is_not_installed'"),
        ("", ":app", "has no attribute 'app'"),
        ("", "_gone:app", "No module named"),
    ],
)
def test_a_broken_plugin_breaks_its_own_command_alone(install: Install, source: str, where: str, reason: str) -> None:
    install(source, greet=where)
    result = exodus("greet", "you")
    assert result.exit_code == 2
    assert "exodus: the command greet of greeting" in result.stderr
    assert reason in result.stderr
    assert exodus("ping").stdout == "pong\n"


def test_a_plugin_does_not_take_the_name_of_a_command(install: Install) -> None:
    install(COMMAND, ping=":app", second=":app")
    assert exodus("ping").stdout == exodus("second").stdout == "pong\n"


def test_an_entry_point_without_a_distribution_is_named_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    from exodus_client._cli import plugins

    point = EntryPoint("greet", "nothing_here:app", GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]))
    assert "A command of nothing_here:app" in exodus("--help").stdout
