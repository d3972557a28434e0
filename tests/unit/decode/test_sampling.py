"""specbench.decode.sampling: noise is uniform and depends on its keys only; warping equals that of transformers."""

import math

import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbench.decode.sampling import Sampler, Stream, first_largest, gumbel, hash32, largest, uniform

INF = float("inf")


def make(batch: int = 1, vocab: int = 61, **options: object) -> Sampler:
    defaults = {
        "temperature": 0.8,
        "top_k": None,
        "top_p": None,
        "min_new_tokens": 0,
        "vocab_size": vocab,
        "seed": 0,
        "eos_ids": torch.tensor([], dtype=torch.int64),
        "keys": torch.arange(batch, dtype=torch.int32),
        "prompt_lengths": torch.full((batch,), 5),
    }
    return Sampler(**{**defaults, **options})


def uniforms(seed: int = 0, stream: int = 1, rows: int = 64, positions: int = 64, tokens: int = 16) -> torch.Tensor:
    keys = (torch.arange(rows)[:, None, None], torch.arange(positions)[None, :, None] * 64, torch.arange(tokens))
    return uniform(hash32(seed, stream, *keys)).double()


# ---- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 1])
@pytest.mark.parametrize("stream", list(Stream))
def test_the_noise_of_every_stream_is_uniform(seed: int, stream: Stream):
    """Kolmogorov-Smirnov and chi-square over 65,536 numbers; each raises a false alarm once in 10,000 seeds."""
    numbers = uniforms(seed, stream).flatten()
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-4
    assert stats.chisquare(torch.histc(numbers, 256, 0, 1).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["prompts", "positions", "tokens"])
def test_neighbours_along_every_key_are_uncorrelated(axis: int):
    numbers = uniforms()
    ahead = numbers.narrow(axis, 1, numbers.shape[axis] - 1).flatten()
    behind = numbers.narrow(axis, 0, numbers.shape[axis] - 1).flatten()
    z = float(torch.corrcoef(torch.stack([ahead, behind]))[0, 1]) * math.sqrt(len(ahead))
    assert abs(z) < 4


def test_any_two_streams_and_any_two_seeds_are_uncorrelated():
    rows = [uniforms(0, stream).flatten() for stream in Stream] + [uniforms(seed, 1).flatten() for seed in (1, 2, 3)]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert float(correlation.abs().max()) * math.sqrt(len(rows[0])) < 4.5


@pytest.mark.parametrize("stream", list(Stream))
def test_every_bit_of_the_hash_is_set_half_of_the_time(stream: Stream):
    bits = hash32(7, stream, torch.arange(4096)[:, None], torch.arange(16))
    for bit in range(32):
        ones = float(((bits >> bit) & 1).double().mean())
        assert abs(ones - 0.5) * 2 * math.sqrt(bits.numel()) < 4.5


def test_noise_is_always_finite_and_uniforms_stay_inside_zero_and_one():
    edge = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    assert torch.isfinite(gumbel(edge)).all()
    assert ((uniform(edge) > 0) & (uniform(edge) < 1)).all()


def test_gumbel_noise_has_the_gumbel_law():
    bits = hash32(3, 1, torch.arange(60_000))
    assert stats.kstest(gumbel(bits).double().numpy(), "gumbel_r").pvalue > 1e-4


def test_large_gumbel_values_are_as_frequent_as_they_should_be():
    """They decide. P(G > 12) = 6.1e-6, 24.6 of four million."""
    bits = hash32(3, 1, torch.arange(2000)[:, None], torch.arange(2000))
    assert 8 <= int((gumbel(bits) > 12).sum()) <= 50


def test_the_largest_gumbel_value_is_that_of_one_in_four_billion():
    """A float32 uniform next to one has steps of 2**-24 and would cut the noise off at 16.6."""
    ends = torch.tensor([0, 1, 2, 3, -1, -2, -3, -4, 2**31 - 1, -(2**31)], dtype=torch.int32)
    assert float(gumbel(ends).max()) > 22


def test_noise_is_the_same_when_it_is_asked_for_again():
    sampler = make(3)
    positions = torch.tensor([[4, 5], [9, 2], [1, 1]])
    assert torch.equal(sampler.noise(positions, Stream.TARGET), sampler.noise(positions, Stream.TARGET))


def test_noise_depends_on_the_prompts_key_and_not_on_its_slot_or_its_batch():
    positions = torch.tensor([[7, 8, 9]])
    alone = make(1, keys=torch.tensor([42], dtype=torch.int32))
    among = make(8, keys=torch.tensor([3, 1, 4, 15, 9, 2, 42, 6], dtype=torch.int32))
    noise = among.noise(positions.expand(8, -1), Stream.TARGET)
    assert torch.equal(noise[6], alone.noise(positions, Stream.TARGET)[0])
    assert not torch.equal(noise[5], noise[6])
    luck = among.uniforms(positions.expand(8, -1), 0, Stream.ACCEPT)
    assert torch.equal(luck[6], alone.uniforms(positions, 0, Stream.ACCEPT)[0])


@pytest.mark.parametrize("what", ["seed", "stream", "position", "rank", "key"])
def test_noise_changes_with_each_of_its_keys(what: str):
    usual = {"seed": 0, "stream": Stream.DRAFT, "position": 5, "rank": 0, "key": 1}
    other = {"seed": 1, "stream": Stream.TARGET, "position": 6, "rank": 1, "key": 2}

    def noise(choice: dict[str, int]) -> torch.Tensor:
        sampler = make(1, 4000, seed=choice["seed"], keys=torch.tensor([choice["key"]], dtype=torch.int32))
        return sampler.noise(torch.tensor([[choice["position"]]]), choice["stream"], choice["rank"])[0, 0].double()

    one, two = noise(usual), noise({**usual, what: other[what]})
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) * math.sqrt(4000) < 4.5


def test_ranks_of_one_position_never_meet_those_of_the_next():
    sampler = make(1, 5)
    seen = {
        float(sampler.uniforms(torch.tensor([[position]]), rank, Stream.ACCEPT))
        for position in range(50)
        for rank in range(16)
    }
    assert len(seen) == 50 * 16


def test_draws_have_the_softmax_law():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -INF]).expand(40_000, 1, 5)
    drawn = make(40_000, 5, temperature=0.7).draw(logits, torch.zeros(40_000, 1, dtype=torch.int64), Stream.TARGET)
    counts = torch.bincount(drawn.flatten(), minlength=5).double()
    law = (logits[0, 0].double() / 0.7).softmax(-1)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4].numpy(), (law[:4] * 40_000).numpy()).pvalue > 1e-4


def test_draws_from_weights_need_no_sum_of_one():
    weights = torch.tensor([0.0, 0.3, 0.1, 0.0, 0.2]).expand(30_000, 5)
    drawn = make(30_000, 5).draw_from(weights, torch.zeros(30_000, dtype=torch.int64), Stream.RESIDUAL)
    counts = torch.bincount(drawn, minlength=5).double()
    assert counts[0] == counts[3] == 0
    assert stats.chisquare(counts[[1, 2, 4]].numpy(), [15_000, 5_000, 10_000]).pvalue > 1e-4


def test_the_largest_scores_are_draws_without_replacement_in_order():
    """P(first a, then b) = p(a) p(b) / (1 - p(a)), for all twelve pairs of four tokens."""
    logits = torch.tensor([1.0, 0.5, 0.0, -1.0]).expand(60_000, 1, 4)
    scores = make(60_000, 4, temperature=1.0).scores(logits, torch.zeros(60_000, 1, dtype=torch.int64), Stream.DRAFT)
    pairs = scores[:, 0].topk(2).indices
    law = logits[0, 0].double().softmax(-1)
    expected = law[:, None] * law / (1 - law[:, None])
    counts = torch.zeros(4, 4, dtype=torch.float64).index_put_(
        tuple(pairs.T), torch.ones(60_000).double(), accumulate=True
    )
    off = ~torch.eye(4, dtype=torch.bool)
    assert stats.chisquare(counts[off].numpy(), (expected[off] * 60_000).numpy()).pvalue > 1e-4


# ---- warping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.8, None, None),
        (0.3, 5, None),
        (1.7, None, 0.9),
        (0.8, 10, 0.5),
        (1.0, 1, None),
        (1.0, None, 1e-9),
        (1.0, 61, 1.0),
        (0.8, 200, 0.99),
    ],
)
def test_warped_distributions_equal_those_of_transformers(temperature, top_k, top_p):
    torch.manual_seed(3)
    logits = 3 * torch.randn(6, 1, 61)
    oracle = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    oracle += [TopKLogitsWarper(top_k)] if top_k else []
    oracle += [TopPLogitsWarper(top_p)] if top_p and top_p < 1 else []
    expected = oracle(None, logits[:, 0].clone()).softmax(-1)
    got = make(6, temperature=temperature, top_k=top_k, top_p=top_p).probs(logits, torch.full((6, 1), 9))[:, 0]
    assert torch.equal(got > 0, expected > 0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_eos_is_impossible_before_min_new_tokens_exactly_as_in_transformers():
    prompt, eos = 5, torch.tensor([3, 7])
    oracle = MinNewTokensLengthLogitsProcessor(prompt, 4, [3, 7])
    sampler = make(1, 10, min_new_tokens=4, eos_ids=eos, temperature=1.0)
    logits = torch.randn(1, 1, 10)
    for position in range(prompt, prompt + 8):
        expected = oracle(torch.zeros(1, position, dtype=torch.int64), logits[:, 0].clone())
        torch.testing.assert_close(sampler.weigh(logits, torch.tensor([[position]]))[:, 0], expected)


def test_min_new_tokens_counts_from_each_rows_own_prompt():
    sampler = make(2, 4, min_new_tokens=2, eos_ids=torch.tensor([0]), prompt_lengths=torch.tensor([3, 5]))
    probs = sampler.probs(torch.zeros(2, 1, 4), torch.tensor([[5], [5]]))[:, 0, 0]
    assert probs[0] > 0
    assert probs[1] == 0


def test_at_temperature_zero_the_distribution_is_one_hot_at_the_first_of_equals():
    probs = make(1, 4, temperature=0.0).probs(torch.tensor([[[1.0, 3.0, 3.0, 0.0]]]), torch.tensor([[9]]))
    assert probs.tolist() == [[[0.0, 1.0, 0.0, 0.0]]]


def test_padding_rows_of_the_vocabulary_are_cut_off_and_missing_ones_are_impossible():
    sampler = make(1, 4, temperature=1.0)
    wide = sampler.probs(torch.tensor([[[0.0, 0.0, 0.0, 0.0, 99.0]]]), torch.tensor([[9]]))
    narrow = sampler.probs(torch.tensor([[[0.0, 0.0, 0.0]]]), torch.tensor([[9]]))
    assert wide.tolist() == [[[0.25, 0.25, 0.25, 0.25]]]
    torch.testing.assert_close(narrow, torch.tensor([[[1 / 3, 1 / 3, 1 / 3, 0.0]]]))


def test_half_precision_logits_become_float32_distributions():
    logits = torch.randn(1, 1, 61).to(torch.bfloat16)
    probs = make(1).probs(logits, torch.tensor([[9]]))
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, (logits.float() / 0.8).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "levels"), [((4, 9, 4096), 3), ((160, 1024), 300), ((33, 4097), 9), ((1, 64), 2), ((4, 129 * 256), 7)]
)
def test_the_largest_of_many_scores_are_found_by_groups_and_of_equals_the_first(shape, levels, dtype):
    """Few levels, so that rows have ties; sizes that groups do not divide, or that are too small for them."""
    scores = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(levels)).to(dtype)
    first = [row.index(max(row)) for row in scores.flatten(0, -2).tolist()]
    assert first_largest(scores).flatten().tolist() == first
    values, ids = largest(scores, 5)
    assert torch.equal(values, scores.sort(-1, descending=True).values[..., :5])
    assert torch.equal(scores.gather(-1, ids), values)
    assert all(len(set(row)) == 5 for row in ids.flatten(0, -2).tolist())
