"""specbench.decode.target: a forward that leaves after a few layers, on the target's own cache."""

import copy

import pytest
import torch

from specbench.decode.target import CachedModel, Nodes
from specbench.decode.tree import lay_out_chain
from specbench.testing.models import target

PROMPT, DRAFT = [13, 66, 18, 28, 11], [7, 9, 40]


def shortened_copy(module, layers):
    """The same weights in a model that never had more layers."""
    short = copy.deepcopy(module)
    for parent in list(short.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.ModuleList) and len(child) == short.config.num_hidden_layers:
                setattr(parent, name, child[:layers])
    return short


def prefilled(module):
    model = CachedModel(module, "model")
    model.allocate(1, 32)
    model.prefill(torch.tensor([PROMPT]), torch.tensor([len(PROMPT)]))
    return model


def chain_nodes():
    layout = lay_out_chain(len(DRAFT) - 1, None, 1, torch.device("cpu"))
    base = torch.tensor([len(PROMPT)])
    return layout, Nodes(torch.tensor([DRAFT]), base)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "mixtral"])
def test_an_early_exit_gives_the_logits_of_a_model_with_fewer_layers(family):
    module = target(family)
    model = prefilled(module)
    _, nodes = chain_nodes()
    got = model.partial(nodes, len(PROMPT), layers=1).logits[0]
    with torch.no_grad():
        want = shortened_copy(module, 1)(torch.tensor([PROMPT + DRAFT]), use_cache=False).logits[0, len(PROMPT) :]
    assert torch.allclose(got, want, atol=1e-4)
    whole = model.forward(nodes, len(PROMPT)).logits[0]
    assert (whole - want).abs().max() > 1e-2


def test_a_whole_forward_after_an_early_exit_is_as_if_there_had_been_none():
    module = target("llama")
    undisturbed, disturbed = prefilled(module), prefilled(module)
    layout, nodes = chain_nodes()
    disturbed.partial(nodes, len(PROMPT), layers=1)
    arguments = (layout, torch.tensor([DRAFT]), nodes.base, len(PROMPT))
    assert torch.equal(disturbed.verify(*arguments).logits, undisturbed.verify(*arguments).logits)


def test_the_layers_are_put_back_when_the_forward_fails():
    model = prefilled(target("llama"))
    _, nodes = chain_nodes()
    with pytest.raises(IndexError):
        model.partial(nodes._replace(tokens=torch.tensor([[10**6] * 3])), len(PROMPT), layers=1)
    assert len(model.module.model.layers) == 2
