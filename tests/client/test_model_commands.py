"""`exodus models`, against a server that keeps models: what it prints, writes and exits with."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from client.in_process_service import InProcessService
from typer.testing import CliRunner, Result

from exodus_client import Client, Ping, Retries, ServerStorageFullError, cli
from exodus_client._cli import command_line, commands, model_commands

URL = "http://node:8000"
LAYERS = [{"kind": "linear", "in_features": 3, "out_features": 2}, {"kind": "lif", "alpha": 0.5}]
X = np.zeros((2, 4, 3), np.float32)


@pytest.fixture
def connect(server: InProcessService) -> Callable[..., Client]:
    def client(url: str, **arguments: Any) -> Client:
        return Client(url, transport=httpx.MockTransport(server), retries=Retries(count=0), **arguments)

    return client


@pytest.fixture
def exodus(connect: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `exodus models` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "Client", connect)

    def run(*arguments: str, typed: str = "") -> Result:
        result = CliRunner().invoke(commands.app, ["models", *arguments], input=typed)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


def train(connect: Callable[..., Client], layers: Any = LAYERS, **options: Any) -> Any:
    """Make a model and train it for two steps."""
    with connect(URL) as client:
        usual: dict[str, Any] = {"optimizer": {"kind": "sgd", "lr": 0.5}, "seed": 3, "name": "braille", "id": "one"}
        model = client.create_model(layers, **(usual | options))
        for _ in range(2):
            model.step(X, np.array([0, 1]), loss="max_over_time_ce").result()
        return model


@pytest.fixture
def trained(connect: Callable[..., Client]) -> str:
    """The id of a model that was trained for two steps, and saved."""
    with connect(URL) as client:
        train(connect)
        client.model("one").make_durable().result()
    return "one"


class TestList:
    def test_it_lists_the_models_of_the_key(self, exodus: Any, trained: str) -> None:
        result = exodus("list", URL)
        assert result.exit_code == 0, result.output
        head, line = result.stdout.splitlines()
        assert head.split() == ["ID", "NAME", "CALLS", "DURABLE", "PARAMETERS", "CREATED"]
        *shown, created = line.split()
        assert shown == ["one", "braille", "2", "2", "32", "B"]
        assert datetime.fromisoformat(created).tzinfo is not None

    def test_a_server_without_a_disk_says_so(
        self, exodus: Any, server: InProcessService, connect: Callable[..., Client]
    ) -> None:
        server.memory_only = True
        train(connect)
        assert "in memory only" in exodus("list", URL).stdout
        assert "2 done, in memory only, saved every 10" in exodus("show", URL, "one").stdout

    def test_it_prints_json_for_programs(self, exodus: Any, trained: str) -> None:
        (shown,) = json.loads(exodus("list", URL, "--json").stdout)
        assert shown["id"] == "one"
        assert shown["parameters"] == [{"name": "0.weight", "shape": [2, 3]}, {"name": "0.bias", "shape": [2]}]

    @pytest.mark.parametrize(
        ("nbytes", "shown"), [(32, "32 B"), (1536, "1.5 KiB"), (3 * 2**20, "3 MiB"), (5 * 2**40, "5120 GiB")]
    )
    def test_sizes_are_readable(self, nbytes: int, shown: str) -> None:
        assert model_commands._size(nbytes) == shown


class TestShow:
    def test_it_shows_how_far_a_model_is(self, exodus: Any, trained: str) -> None:
        shown = exodus("show", URL, "one").stdout
        lines = [line.split(maxsplit=1) for line in shown.splitlines()]
        assert ["calls", "2 done, 2 durable, saved every 10"] in lines
        optimizer = '"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "nesterov": false, "weight_decay": 0.0'
        assert ["optimizer", f'{{"kind": "sgd", {optimizer}}}'] in lines
        assert ["weights", "32 B of float32, in memory"] in lines
        assert ["0.weight", "2 x 3"] in lines
        assert "last save" not in shown

    def test_it_shows_the_layers_of_the_network(self, exodus: Any, connect: Callable[..., Client]) -> None:
        layers = [
            {"kind": "linear", "out_features": 8, "bias": False},
            {"kind": "lif", "name": "hidden", "alpha": [0.5] * 8, "recurrent": {"gain": 0.5}},
            {"kind": "add", "inputs": ["hidden", "0"]},
            {"kind": "if", "reset": "zero", "surrogate": {"kind": "tanh", "slope": 2.0}},
        ]
        train(connect, layers, input_shape=[3], dtype="float64")
        lines = exodus("show", URL, "one").stdout.splitlines()
        begin = next(index for index, line in enumerate(lines) if line.startswith("network"))
        assert [" ".join(line.split()) for line in lines[begin : begin + 5]] == [
            "network input 3, float64",
            "0 linear out_features 8, in_features 3, bias false, gain 1.0",
            "hidden lif threshold 1.0, reset subtract, decay_reset false, max_spikes 1, "
            "surrogate exponential(slope 1.0, scale 1.0), method exodus, recurrent (bias false, gain 0.5), "
            "alpha [0.5, 0.5, 0.5, 0.5, ... 8 in all]",
            '2 add inputs ["hidden", "0"]',
            "3 if threshold 1.0, reset zero, decay_reset false, max_spikes 1, "
            "surrogate tanh(slope 2.0, scale 1.0), method exodus",
        ]

    def test_a_save_that_failed_is_shown(
        self, exodus: Any, server: InProcessService, connect: Callable[..., Client]
    ) -> None:
        train(connect)
        server.full = True
        with connect(URL) as client, pytest.raises(ServerStorageFullError):
            client.model("one").make_durable().result()
        shown = exodus("show", URL, "one").stdout
        assert "failed: state 2 could not be saved: [Errno 28] No space left on device" in shown

    def test_it_prints_json_for_programs(self, exodus: Any, trained: str) -> None:
        shown = json.loads(exodus("show", URL, "one", "--json").stdout)
        assert (shown["seed"], [layer["kind"] for layer in shown["network"]["layers"]], shown["durable"]) == (
            3,
            ["linear", "lif"],
            2,
        )

    def test_a_model_that_is_not_there_is_exit_code_1(self, exodus: Any) -> None:
        result = exodus("show", URL, "none")
        assert result.exit_code == 1
        assert "there is no model 'none'" in result.stderr


class TestFiles:
    def test_a_state_goes_to_a_file_and_back(
        self, exodus: Any, server: InProcessService, trained: str, connect: Callable[..., Client]
    ) -> None:
        saved = server.state("one")
        assert exodus("save", URL, "one", "one.safetensors").stdout == "one -> one.safetensors, after 2 calls\n"
        with connect(URL) as client:
            client.model("one").step(X, np.array([0, 1]), loss="max_over_time_ce").result()
        assert server.state("one") != saved
        assert exodus("load", URL, "one", "one.safetensors").stdout == "one.safetensors -> one, after 2 calls\n"
        assert server.state("one") == saved

    def test_they_print_json_for_programs(self, exodus: Any, trained: str) -> None:
        wanted = {"id": "one", "file": "one.safetensors", "sequence": 2, "durable": 2}
        for command in ("save", "load"):
            shown = json.loads(exodus(command, URL, "one", "one.safetensors", "--json").stdout)
            assert shown == wanted | {"bytes": Path("one.safetensors").stat().st_size}

    def test_a_model_is_made_from_a_file_only_where_that_is_wanted(
        self, exodus: Any, server: InProcessService, trained: str
    ) -> None:
        exodus("save", URL, "one", "one.safetensors")
        result = exodus("load", URL, "two", "one.safetensors")
        assert result.exit_code == 1
        assert "there is no model 'two'" in result.stderr
        assert exodus("load", URL, "two", "one.safetensors", "--create").exit_code == 0
        assert server.state("two") == server.state("one")
        one, two = server.models["one"], server.models["two"]
        for name in ("network", "optimizer", "seed"):
            assert two[name] == one[name]
        assert exodus("load", URL, "two", "one.safetensors", "--create").exit_code == 0

    @pytest.mark.parametrize(
        "content", [b"", b"text that is no state", b"\x02\0\0\0\0\0\0\0{}", b"\xff\xff\xff\xff\xff\xff\xff\x7f"]
    )
    def test_another_file_is_refused_before_anything_is_sent(
        self, exodus: Any, server: InProcessService, content: bytes
    ) -> None:
        Path("other").write_bytes(content)
        result = exodus("load", URL, "one", "other", "--create")
        assert result.exit_code == 2
        assert "FILE must be the state of a model, which `exodus models save` writes, got other" in result.stderr
        assert not server.requests

    def test_a_file_that_is_not_there_is_exit_code_2(self, exodus: Any) -> None:
        assert exodus("load", URL, "one", "none").exit_code == 2

    def test_weights_alone_are_loaded_all_or_some(self, exodus: Any, server: InProcessService, trained: str) -> None:
        exodus("save", URL, "one", "one.safetensors")
        whole = exodus("load", URL, "one", "one.safetensors", "--weights")
        assert whole.stdout == "one.safetensors -> one, 2 weights: 0.weight, 0.bias\n"
        one = exodus("load", URL, "one", "one.safetensors", "--weights", "--name", "0.bias", "--json")
        loaded = {"loaded": ["0.bias"], "missing": [], "unexpected": []}
        assert json.loads(one.stdout) == {"id": "one", "file": "one.safetensors", **loaded}
        Path("some").write_bytes(safetensors.numpy.save({"0.bias": np.ones(2), "9.bias": np.ones(2)}))
        assert exodus("load", URL, "one", "some", "--weights").exit_code == 1
        some = exodus("load", URL, "one", "some", "--weights", "--partial")
        assert some.stdout.splitlines()[1:] == ["missing: 0.weight", "not in the network: 9.bias"]
        assert server.state("one").tensors["weights.0.bias"].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("options", [["--partial"], ["--name", "0"], ["--weights", "--create"]])
    def test_options_that_do_not_go_together_are_refused(self, exodus: Any, trained: str, options: list[str]) -> None:
        exodus("save", URL, "one", "one.safetensors")
        result = exodus("load", URL, "one", "one.safetensors", *options)
        assert result.exit_code == 2
        assert "must be" in result.stderr


class TestDelete:
    def test_it_deletes_the_model(self, exodus: Any, server: InProcessService, trained: str) -> None:
        assert exodus("delete", URL, "one", "--yes").stdout == "one is deleted\n"
        assert not server.models
        assert exodus("delete", URL, "one", "--yes").exit_code == 1

    def test_it_prints_json_for_programs(self, exodus: Any, trained: str) -> None:
        assert json.loads(exodus("delete", URL, "one", "-y", "--json").stdout) == {"id": "one", "deleted": True}

    def test_where_it_cannot_ask_it_deletes_nothing(self, exodus: Any, server: InProcessService, trained: str) -> None:
        asked = len(server.requests)
        result = exodus("delete", URL, "one")
        assert result.exit_code == 2
        assert result.stderr == "exodus: --yes must be given if there is no terminal to ask at, got nothing\n"
        assert len(server.requests) == asked

    @pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
    def test_at_a_terminal_it_asks(
        self,
        exodus: Any,
        server: InProcessService,
        trained: str,
        monkeypatch: pytest.MonkeyPatch,
        answer: str,
        is_deleted: bool,
    ) -> None:
        monkeypatch.setattr(model_commands, "_is_terminal", lambda: True)
        result = exodus("delete", URL, "one", "--json", typed=answer)
        assert result.stderr.startswith("delete one (braille) after 2 calls? [y/N]:")
        assert result.exit_code == (0 if is_deleted else 1)
        assert ("one" in server.models) is not is_deleted
        assert ('"deleted": true' in result.stdout) is is_deleted

    def test_a_model_that_is_not_there_is_not_asked_about(self, exodus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_commands, "_is_terminal", lambda: True)
        result = exodus("delete", URL, "none")
        assert result.exit_code == 1
        assert result.stderr.startswith("exodus: 404")


class TestOutput:
    """Commands whose output nobody takes."""

    @pytest.fixture(params=["full", "closed"])
    def run(
        self, request: Any, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> Callable[..., str]:
        """Runs `exodus`, with a full disk or a reader that has gone as its output; what it says on stderr."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(command_line, "Client", connect)

        def run(*arguments: str) -> str:
            if request.param == "full":
                output = os.open("/dev/full", os.O_WRONLY)
            else:
                reading, output = os.pipe()
                os.close(reading)
            stdout = os.fdopen(output, "w")
            with monkeypatch.context() as patched:
                patched.setattr("sys.argv", ["exodus", *arguments])
                patched.setattr("sys.stdout", stdout)
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                assert ended.value.code == 1
                if not sys.stdout.closed:  # as Python does at its end
                    sys.stdout.flush()
            with contextlib.suppress(OSError):
                stdout.close()
            said: str = capfd.readouterr().err
            assert "Traceback" not in said
            return said

        run.closed = request.param == "closed"  # type: ignore[attr-defined]
        return run

    @pytest.mark.parametrize(
        "command",
        [
            ("models", "list", URL), ("models", "list", URL, "--json"), ("models", "show", URL, "one"),
            ("models", "show", URL, "one", "--json"), ("capabilities", URL), ("ping", URL), ("--help",),
            ("models", "--help"),
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_is_told_in_a_line_or_not_at_all(
        self,
        run: Any,
        server: InProcessService,
        trained: str,
        command: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Client, "capabilities", lambda self: {"methods": ["exodus"]})
        monkeypatch.setattr(Client, "ping", lambda self: Ping(ready=True, reason="", round_trip=1.0))
        said = "" if run.closed else "exodus: the output cannot be written: No space left on device\n"
        assert run(*command) == said

    @pytest.mark.parametrize("json", [(), ("--json",)], ids=["text", "json"])
    def test_does_not_hide_what_was_done(
        self, run: Any, server: InProcessService, trained: str, json: tuple[str, ...]
    ) -> None:
        reason = "Broken pipe" if run.closed else "No space left on device"
        ends = f", but the output cannot be written: {reason}\n"
        said = run("models", "save", URL, "one", "one.safetensors", *json)
        assert said == f"exodus: one -> one.safetensors, after 2 calls{ends}"
        said = run("models", "load", URL, "one", "one.safetensors", *json)
        assert said == f"exodus: one.safetensors -> one, after 2 calls{ends}"
        assert run("models", "delete", URL, "one", "--yes", *json) == f"exodus: one is deleted{ends}"
        assert not server.models
