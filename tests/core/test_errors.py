"""Errors of arguments and descriptions: their fields, their one sentence, their place among Python's errors."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import exodus_core
from exodus_core import ArgumentError, ArgumentTypeError, DescriptionError, losses, network, training


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError, DescriptionError, network.NetworkError])
def test_an_error_has_its_fields_and_one_sentence(kind: type[ArgumentError]) -> None:
    error = kind("alpha", "in [0, 1]", 1.5)
    assert (error.argument, error.expected, error.got) == ("alpha", "in [0, 1]", "1.5")
    assert str(error) == "alpha must be in [0, 1], got 1.5"


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError, losses.LossError])
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_can_be_copied_and_sent_to_another_process(kind: Any, copied: Callable[[Any], Any]) -> None:
    error = kind("x", "on the device cpu", torch.device("meta"), "move the layer")
    again = copied(error)
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_arguments_are_refused_by_pythons_kinds_of_errors() -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5") as value:
        exodus_core.lif(torch.ones(2, 5, 3), 1.5)
    assert isinstance(value.value, ArgumentError)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list") as kind:
        exodus_core.lif([1.0], 0.5)
    assert isinstance(kind.value, ArgumentTypeError)


def test_what_to_do_follows_the_sentence() -> None:
    with pytest.raises(ArgumentError) as caught:
        exodus_core.nn.LIF(0.9)(torch.ones(2, 3))
    assert caught.value.got == "(2, 3)"
    assert str(caught.value) == (
        "x must be of shape (batch, time, neurons...) if time_dim is 1, got (2, 3); "
        "pass x.unsqueeze(1) for one step, to a layer with stateful=True if it is to go on from the last one, or set "
        "time_dim=-1 if the last axis is time"
    )


def test_descriptions_are_refused_with_a_pointer() -> None:
    with pytest.raises(DescriptionError) as caught:
        network.parse({"input_shape": [3], "layers": [{"kind": "if", "alpha": 0.5}]})
    assert caught.value.pointer == caught.value.argument == "/layers/0/alpha"
    assert str(caught.value).startswith("/layers/0/alpha must be absent (the fields are kind, name, inputs,")
    with pytest.raises(training.OptimizerError, match=r"^the description must be a name or an object, got 3$"):
        training.parse_optimizer(3)
