import pytest
import torch
from torch import Tensor, nn

from training.activation_checkpointing import recompute_activations


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU()) for _ in range(3)]
    return nn.Sequential(*blocks, nn.Linear(8, 2))


def gradients(module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    module(torch.ones(4, 8)).square().sum().backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def test_results_gradients_and_keys_stay_the_same_also_with_dropout() -> None:
    plain, thrifty = network(), network()
    recompute_activations(list(thrifty)[:3])
    assert plain.state_dict().keys() == thrifty.state_dict().keys()
    ours, theirs = gradients(thrifty), gradients(plain)
    assert len(ours) == len(theirs) == 8
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    torch.manual_seed(2)
    first = thrifty(torch.ones(4, 8))
    torch.manual_seed(2)
    assert torch.equal(first, plain(torch.ones(4, 8)))


def test_a_block_keeps_its_input_alone() -> None:
    def kept(module: nn.Module) -> int:
        sizes = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(torch.ones(64, 8, requires_grad=True))
        return sum(sizes)

    thrifty = network()
    recompute_activations(list(thrifty)[:3])
    assert kept(thrifty) < 0.5 * kept(network())


def test_an_activation_is_computed_twice() -> None:
    calls = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    module = Counted(8, 8)
    recompute_activations([module])
    result = module(torch.ones(1, 8, requires_grad=True))
    assert len(calls) == 1
    result.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_inference_are_as_before(training: bool) -> None:
    thrifty = network().train(training)
    recompute_activations(thrifty)
    with torch.no_grad():
        assert thrifty(torch.ones(1, 8)).shape == (1, 2)
