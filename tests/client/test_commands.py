"""The command `exodus`: what it prints, writes and exits with. No traceback for what a user can get wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from exodus_client import Client, Retries, cli
from exodus_client._cli import command_line, commands

U = np.linspace(-1, 2, 24, dtype=np.float32).reshape(2, 4, 3)


@pytest.fixture
def exodus(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a folder with u.npy and g.npy, against the service in the place of the network."""
    monkeypatch.chdir(tmp_path)
    np.save("u.npy", U)
    np.save("g.npy", np.ones_like(U))

    def client(url: str, **arguments: Any) -> Client:
        return Client(
            url, transport=httpx.MockTransport(service), retries=Retries(sleep=service.waits.append), **arguments
        )

    monkeypatch.setattr(command_line, "Client", client)

    def run(*arguments: str, **environment: str) -> Result:
        result = CliRunner().invoke(commands.app, list(arguments), env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


GRADIENT = ("gradient", "--url", "http://node:8000", "--out", "grad.npy")
FROM_MEMBRANE = (*GRADIENT, "--membrane", "u.npy", "--grad-output", "g.npy", "--alpha", "0.95")


class TestGradient:
    def test_it_writes_the_gradient_and_prints_norms_and_times(self, service: Any, exodus: Any) -> None:
        result = exodus(*FROM_MEMBRANE, "--method", "exodus")
        assert result.exit_code == 0, result.output
        assert np.load("grad.npy").shape == U.shape
        assert "grad_input -> grad.npy, computed by exodus on fake" in result.stdout
        assert "norms   grad_input " in result.stdout
        assert "kernel 2.25" in result.stdout

    def test_it_prints_json_for_programs(self, service: Any, exodus: Any) -> None:
        shown = json.loads(exodus(*FROM_MEMBRANE, "--json").stdout)
        assert shown["shapes"] == {"grad_input": [2, 4, 3]}
        assert shown["grad_norms"]["grad_input"] == pytest.approx(np.linalg.norm(np.load("grad.npy")), rel=1e-6)
        assert shown["timing_ms"]["kernel"] == 2.25
        assert shown["out"] == "grad.npy"

    def test_its_options_reach_the_server(self, service: Any, exodus: Any) -> None:
        exodus(
            *(*GRADIENT[:-1], "all.npz", "--input", "u.npy", "--grad-output", "g.npy", "--grad-membrane", "g.npy"),
            *("--neuron", "if", "--threshold", "0.5", "--reset", "zero", "--reset-by", "0.4", "--decay-reset"),
            *("--surrogate", "tanh", "--slope", "2", "--scale", "0.5", "--time-dim", "-2", "--output-filter", "0.5"),
            *("--wrt", "threshold", "--wrt", "reset_by", "--return", "spikes", "--api-key", "k", "--timeout", "9"),
            *("--method", "slayer"),
        )
        (request,), (message,) = service.requests, service.messages
        assert request.url.path == "/v1/gradients/slayer"
        assert request.headers["Authorization"] == "Bearer k"
        assert 8000 < int(request.headers["X-Deadline-Ms"]) <= 9000
        assert set(message.tensors) == {"input", "grad_output", "grad_membrane"}
        assert message.params == {
            "neuron": {
                "model": "if",
                "threshold": 0.5,
                "reset": "zero",
                "reset_by": 0.4,
                "decay_reset": True,
                "max_spikes": 1,
            },
            "surrogate": {"kind": "tanh", "slope": 2.0, "scale": 0.5},
            "time_dim": -2,
            "output_filter": {"alpha": 0.5},
            "wrt": ["threshold", "reset_by"],
            "return": ["spikes"],
        }

    def test_coupled_neurons_bring_their_parameters_and_the_trace_of_their_current(
        self, service: Any, exodus: Any
    ) -> None:
        service.handler = lambda request: httpx.Response(422)
        synapse = ("--synapse-alpha", "0.8", "--synapse-gain", "0.5", "--synapse-delayed")
        adaptation = ("--adapt-alpha", "0.7", "--adapt-by", "2", "--adapt-membrane", "0.1", "--adapt-current", "0.2")
        exodus(
            *(*FROM_MEMBRANE, "--neuron", "alif", *synapse, *adaptation, "--adapt-threshold", "0.3"),
            *("--current", "u.npy", "--reset", "value", "--reset-to", "-0.1", "--detach-reset", "--refractory", "2"),
            *("--min-membrane", "-1", "--max-spikes", "1", "--wrt", "synapse_alpha"),
        )
        (message,) = service.messages
        assert set(message.tensors) == {"membrane", "grad_output", "current"}
        assert message.params["neuron"] == {
            "model": "alif",
            "alpha": 0.95,
            "synapse_alpha": 0.8,
            "synapse_gain": 0.5,
            "synapse_delayed": True,
            "adapt_alpha": 0.7,
            "adapt_by": 2.0,
            "adapt_membrane": 0.1,
            "adapt_threshold": 0.3,
            "adapt_current": 0.2,
            "threshold": 1.0,
            "reset": "value",
            "reset_to": -0.1,
            "decay_reset": False,
            "detach_reset": True,
            "refractory": 2,
            "min_membrane": -1.0,
            "max_spikes": 1,
        }

    def test_shared_memory_is_used_where_it_is_wanted(
        self, service: Any, exodus: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        np.save("u.npy", np.zeros((8, 100, 64), np.float32))
        np.save("g.npy", np.ones((8, 100, 64), np.float32))
        service.answers = [httpx.Response(404, json={"code": "not_found", "detail": "it is off here"})]
        assert exodus(*FROM_MEMBRANE, "--shared-memory").exit_code == 0
        assert [request.url.path for request in service.requests] == ["/v1/shared-memory", "/v1/gradients/exodus"]
        assert "it is off here" in caplog.text

    def test_an_npz_file_takes_all_arrays(self, service: Any, exodus: Any) -> None:
        result = exodus(*FROM_MEMBRANE, "--out", "all.npz", "--wrt", "alpha")
        with np.load("all.npz") as saved:
            assert set(saved) == {"grad_input", "grad_alpha"}
        assert "grad_input, grad_alpha -> all.npz" in result.stdout

    def test_an_srm_brings_its_taps_as_a_file(self, service: Any, exodus: Any) -> None:
        service.handler = lambda request: httpx.Response(422)
        np.save("taps.npy", np.array([-1.0]))
        arguments = ("--neuron", "srm", "--psp", "u.npy", "--reset-kernel", "taps.npy", "--grad-output", "g.npy")
        assert exodus(*GRADIENT, *arguments).exit_code == 1
        assert service.messages[0].params["neuron"] == {
            "model": "srm",
            "threshold": 1.0,
            "reset_kernel": {"tensor": "reset_kernel"},
        }

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--membrane", "u.npy"), "--alpha must be given with --neuron lif, such as 0.95, got nothing"),
            (
                ("--membrane", "u.npy", "--neuron", "cuba_lif", "--alpha", "0.9"),
                "--synapse-alpha must be given with --neuron cuba_lif, such as 0.95, got nothing",
            ),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--synapse-alpha", "0.8"),
                "--neuron must be cuba_lif or alif with --synapse-alpha, got lif",
            ),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--reset", "value"),
                "LIF.reset_to must be a value with reset 'value'",
            ),
            (
                ("--membrane", "u.npy", "--neuron", "if", "--alpha", "1"),
                "--neuron must be lif or cuba_lif or alif with --alpha, got if",
            ),
            (("--membrane", "u.npy", "--alpha", "0.9"), "grad_output must be given"),
            (("--membrane", "none.npy", "--alpha", "0.9"), "No such file or directory: 'none.npy'"),
            (("--membrane", "text.npy", "--alpha", "0.9"), "--membrane must be a .npy file of numbers, got text.npy"),
            (
                ("--grad-output", "empty.npy", "--alpha", "0.9"),
                "--grad-output must be a .npy file of numbers, got empty.npy",
            ),
            (
                ("--membrane", "pickle.npy", "--alpha", "0.9"),
                "--membrane must be a .npy file of numbers, got pickle.npy",
            ),
            (("--membrane", "two.npz", "--alpha", "0.9"), "--membrane must be a .npy file of numbers, got two.npz"),
            (("--membrane", "vast.npy", "--alpha", "0.9"), "--membrane must be a .npy file of numbers, got vast.npy"),
            (
                ("--psp", "u.npy", "--neuron", "srm", "--reset", "zero"),
                "with --reset, got srm; the taps of srm are --reset-kernel",
            ),
            (
                ("--psp", "u.npy", "--neuron", "srm", "--decay-reset"),
                "--neuron must be lif or if or cuba_lif or alif with --decay-reset, got srm",
            ),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--out", "grad.txt"),
                "--out must be a name that ends in .npy or .npz, got grad.txt",
            ),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--out", "none/grad.npy"),
                "--out must be in a folder that exists, got none",
            ),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--url", "node"),
                "base_url must be http://HOST:PORT, https://HOST or unix:/PATH, got 'node'",
            ),
            (("--membrane", "u.npy", "--alpha", "nan"), "LIF.alpha must be a finite number, got nan"),
            (
                ("--membrane", "u.npy", "--alpha", "0.9", "--wrt", "beta", "--grad-output", "g.npy"),
                "wrt must be one of alpha, threshold, reset_by, reset_to, initial_membrane, got 'beta'",
            ),
        ],
    )
    def test_what_a_user_gets_wrong_is_one_message_and_exit_code_2(
        self, service: Any, exodus: Any, arguments: tuple[str, ...], message: str
    ) -> None:
        Path("text.npy").write_text("1 2 3")
        Path("empty.npy").touch()
        np.save("pickle.npy", np.array([{}], object))
        np.savez("two.npz", a=U, b=U)
        with open("vast.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
        result = exodus(*GRADIENT, *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("exodus: ")
        assert message in result.stderr
        assert not service.requests
        assert not Path("grad.npy").exists()

    def test_an_unknown_choice_names_the_choices(self, exodus: Any) -> None:
        result = exodus(*FROM_MEMBRANE, "--method", "adjoint")
        assert result.exit_code == 2
        assert "exodus" in result.stderr

    def test_what_the_server_refuses_is_its_message_and_exit_code_1(self, service: Any, exodus: Any) -> None:
        service.handler = lambda request: httpx.Response(422, json={"code": "invalid", "detail": "alpha is too large"})
        result = exodus(*FROM_MEMBRANE)
        assert result.exit_code == 1
        assert result.stderr.startswith("exodus: 422 invalid: alpha is too large")

    def test_no_server_is_exit_code_3(self, service: Any, exodus: Any) -> None:
        service.answers = [httpx.ConnectError("refused")] * 4
        result = exodus(*FROM_MEMBRANE)
        assert result.exit_code == 3
        assert "no answer from http://node:8000" in result.stderr


class TestPing:
    def test_a_server_that_is_ready(self, service: Any, exodus: Any) -> None:
        service.handler = lambda request: httpx.Response(200)
        result = exodus("ping", "http://node:8000")
        assert result.exit_code == 0
        assert result.stdout.startswith("ready (")

    def test_a_server_that_is_not_ready_is_exit_code_3(self, service: Any, exodus: Any) -> None:
        service.answers = [httpx.Response(503, json={"detail": "warming up"}), httpx.Response(200)]
        result = exodus("ping", "http://node:8000")
        assert result.exit_code == 3
        assert result.stderr.startswith("not ready: warming up (")
        assert [request.url.path for request in service.requests] == ["/readyz", "/livez"]

    @pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (403, "forbidden")])
    def test_a_key_that_the_server_does_not_take_is_exit_code_1(
        self, service: Any, exodus: Any, status: int, code: str
    ) -> None:
        refusal = httpx.Response(status, json={"code": code, "detail": "send another key"})
        service.answers = [httpx.Response(200), httpx.Response(200), refusal]
        result = exodus("ping", "http://node:8000", "--api-key", "wrong")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"exodus: {status} {code}: send another key")
        assert not result.stdout


def test_capabilities_are_printed_as_json_and_the_key_comes_from_the_environment(service: Any, exodus: Any) -> None:
    service.handler = lambda request: httpx.Response(200, json={"methods": ["exodus"]})
    result = exodus("capabilities", "http://node:8000", EXODUS_API_KEY="k")
    assert json.loads(result.stdout) == {"methods": ["exodus"]}
    assert service.requests[0].headers["Authorization"] == "Bearer k"


def test_a_bad_key_of_the_environment_is_named_by_its_variable(exodus: Any) -> None:
    result = exodus("capabilities", "http://node:8000", EXODUS_API_KEY="a\nb")
    assert result.exit_code == 2
    assert result.stderr.startswith("exodus: the environment variable EXODUS_API_KEY must be printable")


class TestEntryPoint:
    def test_it_runs_the_application(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["exodus", "--help"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        assert "gradient" in capsys.readouterr().out

    def test_without_typer_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "exodus_client._cli.commands")
        monkeypatch.delattr("exodus_client._cli.commands")
        monkeypatch.setitem(sys.modules, "typer", None)
        with pytest.raises(SystemExit, match=r"needs typer: pip install 'exodus-client\[cli\]'"):
            cli.main()

    def test_another_missing_package_is_not_mistaken_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "exodus_client._cli.commands")
        monkeypatch.delattr("exodus_client._cli.commands")
        monkeypatch.setitem(sys.modules, "numpy", None)
        with pytest.raises(ModuleNotFoundError, match="numpy"):
            cli.main()
