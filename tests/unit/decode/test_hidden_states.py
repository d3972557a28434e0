"""specbench.decode: what a method that asks for hidden states and top tokens is given."""

import torch

from specbench.decode.loop import Requests, generate
from specbench.decode.method import Caps, Hidden, Method, Needs, Options, TokenTree
from specbench.decode.step import Decoding
from specbench.decode.target import CachedModel
from specbench.testing.models import PROMPTS, target

POST_NORM, SECOND_LAYER = Hidden("post_norm"), Hidden("layer_input", 1)
TOPK = 3


class Eavesdropper(Method):
    """Drafts one wrong and one right-looking branch, and keeps everything that the core hands over."""

    name = "eavesdropper"

    def __init__(self, where: str) -> None:
        super().__init__(Options())
        self.where, self.prefill, self.results, self.roots = where, None, [], []

    def needs(self) -> Needs:
        return Needs((POST_NORM, SECOND_LAYER), prompt_hidden=self.where, node_topk=TOPK)

    def caps(self) -> Caps:
        return Caps(max_nodes=3, max_depth=2, max_children=2)

    def begin(self, view, prefill):
        self.prefill = prefill

    def draft(self, view):
        self.roots.append((view.root.clone(), view.lengths.clone()))
        tokens = torch.stack([view.root + 1, view.root, view.root], dim=1) % view.sampler.vocab_size
        return TokenTree(tokens, parents=torch.tensor([-1, -1, 1]).expand(len(view.root), -1))

    def update(self, view, result):
        self.results.append(result)


def reference(module, ids):
    """Hidden states and logits over a plain sequence, from the model itself."""
    with torch.no_grad():
        output = module(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    # The last entry is what the output head reads; entry 1 is what layer 1 reads.
    return output.hidden_states[-1][0], output.hidden_states[1][0], output.logits[0]


def decode(where):
    module = target("llama")
    method = Eavesdropper(where)
    prompts = [list(prompt) for prompt in PROMPTS[:3]]
    requests = Requests(prompts, [1, 2, 3])
    trace = generate(CachedModel(module, "llama"), method, requests, Decoding(8))
    return module, method, prompts, trace


def test_prompt_hidden_states_are_those_of_a_plain_forward():
    module, method, prompts, _ = decode("all")
    for row, prompt in enumerate(prompts):
        post_norm, layer_input, logits = reference(module, prompt)
        got = method.prefill.hidden
        assert torch.allclose(got[POST_NORM][row, : len(prompt)], post_norm, atol=1e-4)
        assert torch.allclose(got[SECOND_LAYER][row, : len(prompt)], layer_input, atol=1e-4)
        assert method.prefill.node_topk[row, 0].tolist() == logits[-1].topk(TOPK).indices.tolist()


def test_only_the_last_prompt_position_is_kept_where_only_it_is_asked_for():
    module, method, prompts, _ = decode("last")
    for row, prompt in enumerate(prompts):
        post_norm, layer_input, _ = reference(module, prompt)
        assert method.prefill.hidden[POST_NORM].shape[1] == 1
        assert torch.allclose(method.prefill.hidden[POST_NORM][row, 0], post_norm[-1], atol=1e-4)
        assert torch.allclose(method.prefill.hidden[SECOND_LAYER][row, 0], layer_input[-1], atol=1e-4)


def test_step_hidden_states_follow_the_accepted_path():
    module, method, prompts, trace = decode("last")
    for row, prompt in enumerate(prompts):
        text = prompt + trace.rows[row].output_ids
        post_norm, layer_input, logits = reference(module, text)
        for result, (_, lengths) in zip(method.results, method.roots, strict=True):
            start, count = int(lengths[row]), int(result.emitted_tokens[row])
            kept = slice(start, start + count)
            assert torch.allclose(result.hidden[POST_NORM][row, :count], post_norm[kept], atol=1e-4)
            assert torch.allclose(result.hidden[SECOND_LAYER][row, :count], layer_input[kept], atol=1e-4)
            if count:
                assert result.node_topk[row, 0].tolist() == logits[start].topk(TOPK).indices.tolist()
