"""specbench.bench.step_work"""

from copy import deepcopy

import pytest
import torch
from torch import nn

from methods.autoregressive import Autoregressive
from specbench.bench.step_work import count_step, windowed_layers
from specbench.decode.loop import Decoding, Requests, generate
from specbench.decode.target import CachedModel
from specbench.testing import models
from support import decoding

REQUESTS = Requests([[1, 2, 3], [4, 5, 6, 7]], [0, 1])
DECODING = Decoding(max_new_tokens=12)


def weights_read(module, tokens):
    """Bytes of every parameter, but of the embedding only the rows of so many tokens."""
    embedding = module.get_input_embeddings().weight
    whole = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    tied = module.get_output_embeddings().weight is embedding
    rows = tokens * embedding.shape[1] * embedding.element_size()
    return whole + rows - (0 if tied else embedding.numel() * embedding.element_size())


def multiplied(module):
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


@pytest.fixture
def target():
    return CachedModel(models.target("llama"), "llama")


def test_a_verification_reads_every_weight_once_and_of_the_embedding_a_row_for_each_token(target):
    work = count_step(target, Autoregressive(Autoregressive.Options()), REQUESTS, DECODING)
    assert work.verified_tokens == 2
    assert work.phases["verify"].weight_bytes == weights_read(target.module, 2)
    assert work.phases["verify"].weight_operations == 2 * 2 * multiplied(target.module)
    assert work.drafting.weight_bytes == 0
    assert work.draft_forwards == 0


def test_the_matrices_are_those_of_the_layers_in_the_order_of_a_forward(target):
    work = count_step(target, Autoregressive(Autoregressive.Options()), REQUESTS, DECODING)
    used = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: used.append(layer.weight))
        for layer in target.module.modules()
        if isinstance(layer, nn.Linear)
    ]
    target.module(torch.tensor([[1, 2, 3]]))
    for handle in handles:
        handle.remove()
    assert [matrix.data_ptr() for matrix in work.verify_matrices] == [weight.data_ptr() for weight in used]
    for matrix, weight in zip(work.verify_matrices, used, strict=True):
        assert torch.equal(matrix, weight.T)


def test_a_draft_model_reads_its_own_weights_once_a_forward(target):
    method = decoding.draft_model(target, {"d": models.stranger()}, draft="d", gamma=3)
    work = count_step(target, method, REQUESTS, DECODING, drafts=[method.model])
    module, cache = method.model.module, method.model.cache
    assert work.draft_forwards == 3
    # The first of the three reads two tokens, and so looks up another row.
    least, most = (3 * weights_read(module, tokens) for tokens in (2, 4))
    assert least <= work.drafting.weight_bytes <= most
    assert work.draft_kv_bytes_per_token == 3 * cache.kv_bytes / (cache.batch * cache.slots)


def test_operations_are_as_many_for_many_rows_as_for_one(target):
    counts = []
    for rows in (1, 32):
        method = decoding.draft_model(target, {"d": models.target("llama")}, draft="d", gamma=3)
        requests = Requests([[1, 2, 3, 4]] * rows, list(range(rows)))
        count_step(target, method, requests, DECODING, drafts=[method.model])  # layouts are made once
        work = count_step(target, method, requests, DECODING, drafts=[method.model])
        counts.append({phase: own.launches for phase, own in work.phases.items()})
    assert counts[0] == counts[1]
    assert counts[0]["verify"] > 10 * target.module.config.num_hidden_layers


def test_counting_changes_no_text_and_leaves_nothing_behind(target):
    method = Autoregressive(Autoregressive.Options())
    before = [row.output_ids for row in generate(target, method, REQUESTS, DECODING).rows]
    count_step(target, method, REQUESTS, DECODING)
    assert [row.output_ids for row in generate(target, method, REQUESTS, DECODING).rows] == before
    assert not target.module._forward_pre_hooks


def test_a_batch_that_ends_with_its_first_token_has_no_step_to_count(target):
    method = Autoregressive(Autoregressive.Options())
    assert count_step(target, method, REQUESTS, Decoding(max_new_tokens=1)) is None


def test_layers_that_look_back_a_window_are_told_apart(target):
    assert windowed_layers(target) == (0.0, None)
    target.config = deepcopy(target.config)  # the module, and with it its configuration, is everybody's
    target.config.sliding_window = 8
    target.config.layer_types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert windowed_layers(target) == (0.5, 8)
