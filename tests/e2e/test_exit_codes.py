"""Exit statuses of the examples: without a usable service they end with one line on stderr."""

import socket

import pytest
import typer
from typer.testing import CliRunner, Result

from examples.train_raster import connected, main
from exodus_client import Client


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


def test_without_a_service_an_example_says_so_in_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and listens to nobody
        ended = run("--url", f"http://127.0.0.1:{unused.getsockname()[1]}", "--epochs", "1")
    assert ended.exit_code == 3
    (line,) = ended.stderr.splitlines()
    assert "no answer from http://127.0.0.1:" in line


def test_a_url_that_is_none_is_a_bad_option() -> None:
    ended = run("--url", "nowhere", "--epochs", "1")
    assert ended.exit_code == 2
    assert "--url" in ended.stderr


def test_a_service_that_refuses_has_a_status_of_its_own(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    url = client.connection.session.base_url
    with pytest.raises(typer.Exit) as caught, connected(url) as connection:
        connection.model("nothing")
    assert caught.value.exit_code == 1
    assert "404" in capsys.readouterr().err
