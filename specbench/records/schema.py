"""Every column that specbench stores: its name, type, unit and meaning.

Each table is a tuple of `Column`. Everything else follows from them: the Parquet schema, the check of a
row before it is written, and the column dictionary ``results/README.md``. To rebuild that file::

    python -m specbench.records.schema

A name, type or meaning that changes needs a new `SCHEMA_VERSION`; the store then refuses older files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised whenever a column's name, type or meaning changes."""

STATUSES = ("ok", "oom", "timeout", "error", "unsupported", "skipped")
"""What may stand in `requests.status`."""

PASSES = ("headline", "phase")
"""`headline` is timed from outside and gives the published times; `phase` also times the parts of a step."""

PHASES = ("draft", "verify", "accept", "update", "host")
"""Parts of a step, in their order; `host` is what is left of its wall time."""

BEFORE = MappingProxyType({"execution": "eager"})
"""What rows are taken to hold that are older than a column."""

TEXT, INTEGER, REAL, FLAG = pa.string(), pa.int32(), pa.float64(), pa.bool_()
IDS, COUNTS, REALS = pa.list_(pa.int32()), pa.list_(pa.int16()), pa.list_(pa.float32())


@dataclass(frozen=True)
class Column:
    """One column of one table; `nullable` ones say in their meaning when they are null, or are metrics."""

    name: str
    type: Any
    unit: str
    meaning: str
    nullable: bool = False


_optional = partial(Column, nullable=True)

# fmt: off
REQUESTS: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "The run that wrote the row; its machine and code are in `runs`."),
    Column("trial_id", TEXT, "",
        "Hash of configuration, weights, tokenizer, prompts and measurement version."),
    Column("cell", TEXT, "", "Cell of the grid: all that the arms compared with one another have in common."),
    Column("method", TEXT, "",
        "Method by its registered name: `autoregressive`, `draft_model`, `prompt_lookup`, ..., or a "
        "baseline of another library: `transformers-generate`, `transformers-assisted`, "
        "`transformers-prompt-lookup`."),
    Column("label", TEXT, "", "The user's name for the method, or one made from its options."),
    Column("arm", TEXT, "",
        "What is compared, unique within its cell; `autoregressive` and `autoregressive-twin` are the same "
        "work twice, the A/A pair."),
    Column("options", TEXT, "JSON", "The method's own options."),
    Column("target", TEXT, "", "Target model as the user named it."),
    _optional("draft", TEXT, "",
        "Draft model or heads as the user named them; null for a method without weights."),
    Column("dtype", TEXT, "", "Data type of the target's weights and forward."),
    Column("device", TEXT, "", "Model name of the GPU, or `cpu` and the CPU's model name."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("attention", TEXT, "", "Attention implementation that really ran."),
    _optional("execution", TEXT, "",
        "How the cell's phases were to be run: `eager`, `compiled`, `graphs`, or `graphs, compiled`; with `compiled "
        "pieces` in place of `compiled`, only norms and MLPs were. Older rows are taken to be `eager`."),
    Column("captured_phases", TEXT, "",
        "Phases that ran as captured CUDA graphs, separated by commas; empty if none."),
    _optional("compiled_phases", TEXT, "",
        "Phases that `torch.compile` had made as a whole, separated by commas; empty if none."),
    Column("batch_size", INTEGER, "rows",
        "Rows of a full batch in this cell; a last partial batch has fewer rows."),
    Column("batch_id", TEXT, "",
        "One timed generation: arm x block x repeat x pass x process; its rows share times."),
    Column("row", INTEGER, "index", "Slot of the request in its batch, from 0."),
    Column("block", INTEGER, "index", "Which batch of prompts of the cell, from 0."),
    Column("repeat", INTEGER, "index", "Which repetition of the block, from 0."),
    Column("order_in_block", INTEGER, "index",
        "Position of the arm in the random order of its block, from 0."),
    Column("pass", TEXT, "",
        "`headline`: no clock inside the loop; `phase`: the parts of each step are timed too."),
    Column("process", INTEGER, "index", "Which process of `measure.processes`, from 0."),
    _optional("dataset", TEXT, "", "Prompt source."),
    _optional("category", TEXT, "", "Category of the prompt within its source."),
    Column("prompt_id", TEXT, "", "The prompt, unique within the run; a later turn's ends in `/turn2` and so on."),
    _optional("turn", INTEGER, "",
        "Turn of the prompt in its conversation, from 1; what stands before a later turn are the core's own "
        "autoregressive answers, the same for every arm."),
    _optional("prompt_tokens", INTEGER, "tokens", "Length of the prompt as the target reads it."),
    _optional("output_ids", IDS, "token ids", "Generated tokens, cut at EOS (kept) or at the length limit."),
    _optional("output_tokens", INTEGER, "tokens",
        "Length of `output_ids`; the first of them comes from the prefill."),
    _optional("prefill_tokens", INTEGER, "tokens",
        "Output tokens that were there when the prefill ended: 1, and more where an outside baseline drafts "
        "along with it. Decode steps emitted the others; null counts as 1."),
    _optional("finish_reason", TEXT, "", "Why the row ended: `eos` or `length`."),
    _optional("overshoot_tokens", INTEGER, "tokens",
        "Tokens of the last step beyond EOS or the limit: cut, not counted."),
    _optional("steps", INTEGER, "steps", "Decode steps until the row ended; the prefill is none."),
    _optional("drafted_tokens", INTEGER, "tokens",
        "Sum of `drafted_depth_per_step`: tokens drafted along one path."),
    _optional("accepted_tokens", INTEGER, "tokens", "Sum of `accepted_per_step`."),
    _optional("accepted_per_step", COUNTS, "tokens",
        "Draft tokens kept in each step, without the target's own token and before the cut at EOS or "
        "length: `output_tokens = prefill_tokens + sum(accepted + 1) - overshoot_tokens`."),
    _optional("drafted_depth_per_step", COUNTS, "tokens",
        "Depth of the row's draft in each step: the most that could be accepted."),
    _optional("drafted_nodes_per_step", COUNTS, "nodes",
        "Nodes of the row's draft tree that the target verified in each step; equals the depth for a chain."),
    _optional("prefill_s", REAL, "s",
        "Batch: start of the request to end of the prefill (the method's own included)."),
    _optional("ttft_s", REAL, "s", "Batch: start of the request to the first token at hand."),
    _optional("decode_s", REAL, "s",
        "Batch: end of the prefill to the step that ended the batch's last row. Stored with each row of the "
        "batch and never summed over rows."),
    _optional("row_done_s", REAL, "s", "Row's own: end of the prefill to the step that ended this row."),
    Column("temperature", REAL, "1", "Sampling temperature; 0 is greedy."),
    Column("rule", TEXT, "",
        "Acceptance rule: `greedy`, `rejection`, `match`, `synthetic`, or the lossy `typical`, `redrafter_paper`."),
    Column("lossless", FLAG, "", "The method under this rule claims to keep the target's distribution."),
    Column("seed", pa.int64(), "", "Seed of the counter-based noise."),
    Column("max_new_tokens", INTEGER, "tokens", "Length limit of the output."),
    Column("latency_mode", TEXT, "", "Where draft time comes from: `measured`, `injected` or `composed`."),
    _optional("draft_latency_ms", REAL, "ms",
        "Lower bound that was asked for per draft forward (heads, beams and lookup: per draft phase); null "
        "is as measured."),
    Column("simulated_acceptance", FLAG, "",
        "Acceptance was drawn, not decided by the target: the text is not the target's."),
    _optional("load_average", REAL, "programs",
        "Batch: runnable programs on the machine over the last minute, ours included; null where a system does "
        "not tell, as with the columns down to `gpu_alloc_retries`."),
    _optional("cpu_wait_share", REAL, "fraction",
        "Batch: share of its wall time in which the process was ready and had to wait for a core."),
    _optional("cpu_steal_share", REAL, "fraction", "Batch: share of all CPU time that the hypervisor took."),
    _optional("major_faults", INTEGER, "pages", "Batch: pages of the process that had to be read from disk."),
    _optional("gpu_clock_mhz", INTEGER, "MHz", "Batch: the GPU's SM clock just after its end."),
    _optional("gpu_throttle", TEXT, "",
        "Batch: why the GPU's clock was held down just after its end (`power cap`, `thermal`, ...), separated "
        "by commas; empty if it was not."),
    _optional("gpu_clock_mean_mhz", REAL, "MHz",
        "Batch: mean SM clock over looks twice a second and one just after the end; of the slowest GPU where several "
        "are used. Null where NVML does not tell or was not asked, as with the columns down to `telemetry_busy_s`."),
    _optional("gpu_memory_clock_mhz", REAL, "MHz", "Batch: mean memory clock, in the same way."),
    _optional("gpu_energy_j", REAL, "J",
        "Batch: energy of the whole GPU, of all where several are used, from just before the prefill to the end: the "
        "difference of NVML's counter, not a sum of samples. Null where that took less than 2 s: the power sensor of "
        "recent GPUs sees only part of the time (arXiv 2312.02741: about a quarter on an A100 or H100)."),
    _optional("gpu_power_w", REAL, "W",
        "Batch: mean power over the same time; `gpu_energy_j / gpu_power_w` are its seconds. From looks where a GPU "
        "does not count its energy. Null as above."),
    _optional("gpu_utilisation", REAL, "fraction",
        "Batch: share of the time in which a kernel ran, as NVML averages it; not how well. Null as above."),
    _optional("gpu_temperature_c", INTEGER, "degrees Celsius", "Batch: highest temperature seen."),
    _optional("gpu_throttled_share", REAL, "fraction",
        "Batch: share of the time for which the clock was held down, by NVML's counters of `power cap`, `thermal`, "
        "`sync boost` and `board limit`; that of the reason which did so longest."),
    _optional("gpu_throttled_by", TEXT, "",
        "Batch: why the clock was held down at any time of it, by those counters or in a look, separated by commas; "
        "empty if it was not."),
    _optional("gpu_memory_bytes", pa.int64(), "bytes",
        "Batch: most memory in use on the GPU, by whomever; of the fullest where several are used."),
    _optional("gpu_other_processes", INTEGER, "programs",
        "Batch: most programs beside ours that computed on the GPU, as far as NVML lists them to a container."),
    _optional("telemetry_looks", INTEGER, "count", "Batch: times that the GPU was looked at."),
    _optional("telemetry_busy_s", REAL, "s", "Batch: how long the thread that looks was busy with it."),
    _optional("gpu_alloc_retries", INTEGER, "count",
        "Batch: times that GPU memory was full and torch freed its cache."),
    _optional("weight_bytes", pa.int64(), "bytes",
        "Weights that the arm runs on: target, drafts and trained weights of the method's own, each once; under tensor "
        "parallelism this process's share. Null where nothing could be loaded, as with the columns down to "
        "`peak_rss_bytes`."),
    _optional("cache_bytes", pa.int64(), "bytes",
        "Slabs of keys and values, of the target and the arm's drafts; 0 for a baseline of another library, whose "
        "caches come and go."),
    _optional("graph_bytes", pa.int64(), "bytes",
        "What captured graphs keep for themselves, those of other arms included; null without a GPU."),
    _optional("steady_bytes", pa.int64(), "bytes",
        "Held after the batch: on a GPU all that the process has allocated, the models of other arms included; on a "
        "CPU `weight_bytes` + `cache_bytes`."),
    _optional("peak_bytes", pa.int64(), "bytes",
        "Batch: the most that the process had allocated on its GPUs at once; null without a GPU."),
    _optional("peak_rss_bytes", pa.int64(), "bytes",
        "Batch: the most resident memory of the whole process, Python and its libraries included; null on a GPU, and "
        "where a system does not count it anew for every batch."),
    _optional("repeat_ngram_share", REAL, "fraction",
        "Share of the output's 4-grams that occurred before in it; loops flatter every drafter."),
    Column("target_sha", TEXT, "", "Hash of the target's weights and tokenizer."),
    Column("prompts_sha", TEXT, "", "Hash of the token ids of the cell's prompts."),
    Column("status", TEXT, "",
        "`ok`, `oom`, `timeout`, `error`, `unsupported` or `skipped`; metrics are null unless `ok`."),
    _optional("reason", TEXT, "", "Why the status is not `ok`."),
    _optional("verdict", TEXT, "",
        "Text against the core's autoregressive arm of the same block and repeat: `equal`, `near-tie` or "
        "`WRONG`; null where the check does not apply."),
    _optional("first_divergence", INTEGER, "index", "First output position that differs; null if none."),
    _optional("divergence_gap", REAL, "logits",
        "Target's best logit less that of the token chosen there, teacher-forced."),
)

STEPS: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "The run that wrote the row."),
    Column("trial_id", TEXT, "", "As in `requests`."),
    Column("batch_id", TEXT, "", "The timed generation, as in `requests`; always one of the phase pass."),
    Column("cell", TEXT, "", "As in `requests`."),
    Column("arm", TEXT, "", "As in `requests`."),
    Column("method", TEXT, "", "As in `requests`."),
    Column("step", INTEGER, "index", "Decode step of the batch, from 0."),
    Column("draft_s", REAL, "s", "Time in `method.draft`."),
    Column("verify_s", REAL, "s", "Time in the target's forward over the draft."),
    Column("accept_s", REAL, "s", "Time in the acceptance rule, compaction of the cache included."),
    Column("update_s", REAL, "s", "Time in `method.update`."),
    Column("host_s", REAL, "s", "Host and other: wall time of the step less its four phases."),
    Column("step_s", REAL, "s", "Wall time of the step."),
    _optional("launch_s", REAL, "s",
        "The host's own time in the four phases: to enqueue their work on a GPU, to do it on a CPU. Near `step_s` on a "
        "GPU, the device waits for the host. Null in rows that are older than the column."),
    Column("syncs", INTEGER, "count", "Times the host waited for the device in the step."),
    Column("nodes", INTEGER, "nodes", "Draft nodes verified in the step, summed over active rows."),
    Column("rows_active", INTEGER, "rows", "Rows that had not ended when the step began."),
    Column("emitted_tokens", INTEGER, "tokens",
        "Tokens that the step added to outputs, after the cut, over all rows."),
)

RUNS: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "Names the run; every other table refers to it."),
    Column("started_at", TEXT, "UTC, ISO 8601", "When the run began."),
    _optional("git_sha", TEXT, "", "Commit of the specbench checkout; null outside one."),
    _optional("git_dirty", FLAG, "", "The checkout had changes that were not committed."),
    Column("argv", TEXT, "JSON", "Command line, secrets redacted."),
    Column("experiment", TEXT, "YAML", "The experiment with every default and override resolved."),
    Column("versions", TEXT, "JSON", "Versions of Python, specbench and the packages it stands on."),
    Column("machine", TEXT, "JSON", "GPU, CPU, clocks, power limit, driver, memory."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("seed", pa.int64(), "", "Seed of the run: order of the arms, and noise."),
    Column("schema_version", INTEGER, "", "Version of these columns."),
    Column("measurement_version", INTEGER, "",
        "Version of the protocol; a change of it makes old numbers incomparable."),
    _optional("notes", TEXT, "JSON",
        "Warm-up log and what the run decided: `planned_blocks` (count), `fastest_autoregressive` (cell to "
        "arm), `warmup`, `telemetry` (`on`, or why GPUs were not asked), `warnings` (list of sentences)."),
    Column("status", TEXT, "", "`running`, `done`, `failed` (some trials failed) or `interrupted`."),
)

SCORES: tuple[Column, ...] = (
    Column("model", TEXT, "", "The model as the user named it."),
    Column("weights_sha", TEXT, "", "Hash of its weights."),
    Column("tokenizer_sha", TEXT, "", "Hash of its tokenizer."),
    Column("parameters", pa.int64(), "", "Its parameters, tied ones counted once."),
    Column("data", TEXT, "", "The data set as the user named it."),
    Column("data_sha", TEXT, "", "Hash of the texts or questions that were taken of it, in order."),
    Column("form", TEXT, "", "`texts`, or `choices`: questions with several ways to go on."),
    Column("metric", TEXT, "",
        "Of texts: `perplexity`; `bits_per_byte` of UTF-8, which other tokenizers' models compare by; `top1` and "
        "`top5`, the share of tokens among the model's first guesses. Of choices: `acc`, the share of questions whose "
        "right ending is the likeliest; `acc_norm` and `acc_bytes`, the likeliest per character and per byte."),
    Column("value", REAL, "", "The metric."),
    _optional("low", REAL, "",
        "Lower end of its 95 % interval: over texts, or Wilson's over questions; null with fewer than four texts."),
    _optional("high", REAL, "", "Upper end of its 95 % interval."),
    _optional("standard_error", REAL, "", "Of the metric, null as its interval."),
    _optional("chance", REAL, "", "What guessing would give on average; null for texts."),
    Column("items", INTEGER, "", "Texts or questions."),
    Column("tokens", pa.int64(), "tokens", "Tokens whose probability was asked for."),
    _optional("window_tokens", INTEGER, "tokens",
        "Texts: they were read in windows of so many tokens, each token once; null for choices."),
    _optional("shots", INTEGER, "", "Choices: worked examples before each question; null for texts."),
    Column("truncated", INTEGER, "", "Questions whose beginning was cut off, as it did not fit into the context."),
    Column("dtype", TEXT, "", "Data type of the weights and the forward; probabilities are float32."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("attention", TEXT, "", "Attention implementation that ran."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("batch_size", INTEGER, "rows", "Texts of one forward."),
    Column("versions", TEXT, "JSON", "As in `runs`."),
    Column("scored_at", TEXT, "UTC, ISO 8601", "When it was finished."),
)

LATENCIES: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "The run that wrote the row; its machine and code are in `runs`."),
    Column("point_id", TEXT, "",
        "Hash of name, weights, point, setting and versions; a point that is measured again replaces its row."),
    Column("model", TEXT, "", "Model as the user named it, or the name or numbers of a shape."),
    Column("weights_sha", TEXT, "", "Hash of the weights; of random ones that of shape and seed."),
    Column("random_weights", FLAG, "", "The weights are random: the time is the shape's, the text means nothing."),
    Column("layers", INTEGER, "layers", "Decoder layers."),
    Column("hidden", INTEGER, "", "Width of the residual stream."),
    Column("heads", INTEGER, "", "Attention heads."),
    Column("kv_heads", INTEGER, "", "Heads of keys and values."),
    Column("head_dim", INTEGER, "", "Width of a head."),
    _optional("feed_forward", INTEGER, "", "Inner width of a feed-forward layer; null where a model does not say."),
    Column("vocab", INTEGER, "rows", "Rows of the embedding."),
    Column("parameters", pa.int64(), "", "Parameters that the model really has, tied ones counted once."),
    Column("weight_bytes", pa.int64(), "bytes", "What the parameters occupy in this data type."),
    Column("query_tokens", INTEGER, "tokens", "Tokens of each row that the forward reads."),
    Column("batch_size", INTEGER, "rows", "Rows of the forward."),
    Column("context_tokens", INTEGER, "tokens", "Keys and values of each row that stand before them."),
    Column("mode", TEXT, "",
        "How the forward runs, in the words of `requests.execution`: `eager`, `compiled` by `torch.compile`, `graphs` "
        "or `graphs, compiled`."),
    _optional("forward_s", REAL, "s", "Median over the rounds of the time of one forward; null unless `ok`."),
    _optional("forward_low_s", REAL, "s",
        "Lower end of the median's 95 % interval over rounds; null below six of them."),
    _optional("forward_high_s", REAL, "s", "Upper end of that interval."),
    Column("rounds", INTEGER, "rounds",
        "Times that the point was visited, in rounds that visit all points in a shuffled order; 0 if it failed."),
    Column("burst", INTEGER, "forwards", "Forwards of a visit, one after the other; their mean is one sample."),
    Column("dtype", TEXT, "", "Data type of the weights and the forward."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("attention", TEXT, "", "Attention implementation that really ran."),
    Column("status", TEXT, "", "As in `requests`; the time is null unless `ok`."),
    _optional("reason", TEXT, "", "Why the status is not `ok`."),
)

CHOOSING: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "As in `latencies`."),
    Column("point_id", TEXT, "", "As in `latencies`."),
    Column("model", TEXT, "", "As in `latencies`: the model whose logits tokens are chosen by."),
    Column("weights_sha", TEXT, "", "As in `latencies`."),
    Column("vocab", INTEGER, "tokens", "Tokens that are chosen from."),
    Column("kind", TEXT, "",
        "`draw`: logits become a draft's next token, and the distribution that it was drawn from where the rule asks "
        "for that. `accept`: the accept phase of a step."),
    Column("temperature", REAL, "1", "Sampling temperature; 0 is greedy."),
    Column("rule", TEXT, "", "Acceptance rule."),
    Column("proposal", TEXT, "", "As in `traces`."),
    _optional("top_k", INTEGER, "tokens", "As in `traces`."),
    _optional("top_p", REAL, "1", "As in `traces`."),
    Column("query_tokens", INTEGER, "tokens",
        "Tokens of each row that the forward before it read: 1 for `draw`, and a draft and its root for `accept`."),
    Column("batch_size", INTEGER, "rows", "Rows."),
    Column("context_tokens", INTEGER, "tokens", "Keys and values of each row before them; no time depends on it."),
    Column("mode", TEXT, "",
        "How it runs, as in `latencies`. On a GPU the accept phase is always compiled, here as in a run."),
    _optional("choice_s", REAL, "s",
        "Median over the rounds of the time of one choice, without the forward before it; null unless `ok`."),
    _optional("choice_low_s", REAL, "s",
        "Lower end of the median's 95 % interval over rounds; null below six of them."),
    _optional("choice_high_s", REAL, "s", "Upper end of that interval."),
    Column("rounds", INTEGER, "rounds", "As in `latencies`, with whose points these were visited in turn."),
    Column("burst", INTEGER, "choices", "Choices of a visit, each behind a forward; their mean is one sample."),
    Column("dtype", TEXT, "", "Data type of the weights, the forward and the logits."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("attention", TEXT, "", "Attention implementation of the forward before."),
    Column("status", TEXT, "", "As in `requests`; the time is null unless `ok`."),
    _optional("reason", TEXT, "", "Why the status is not `ok`."),
)

TRACES: tuple[Column, ...] = (
    Column("target", TEXT, "", "As in `requests`."),
    Column("target_sha", TEXT, "", "As in `requests`."),
    Column("draft", TEXT, "", "Draft model as the user named it."),
    Column("draft_sha", TEXT, "", "Hash of the draft's weights."),
    Column("tokenizer_sha", TEXT, "", "Hash of the tokenizer that made the prompts' ids."),
    Column("dataset", TEXT, "", "Prompt source."),
    Column("prompts_sha", TEXT, "", "As in `requests`."),
    Column("prompts", INTEGER, "prompts", "Prompts of the trace: it is complete with one row for each."),
    Column("prompt", INTEGER, "index", "Place of the prompt among them, from 0."),
    Column("prompt_id", TEXT, "", "As in `requests`."),
    _optional("category", TEXT, "", "Category of the prompt within its source."),
    Column("prompt_tokens", INTEGER, "tokens", "Length of the prompt as the target reads it."),
    Column("dtype", TEXT, "", "Data type of both models' weights and forwards; what is stored is float32."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("temperature", REAL, "1", "Sampling temperature; 0 is greedy."),
    _optional("top_k", INTEGER, "tokens", "Only so many of the most probable tokens were kept; null keeps all."),
    _optional("top_p", REAL, "1", "Only the most probable tokens that reach this were kept; null keeps all."),
    Column("rule", TEXT, "", "Acceptance rule: `greedy` (whatever was asked for at T = 0), `match` or `rejection`."),
    Column("proposal", TEXT, "",
        "`argmax`: drafts are the draft's most likely tokens; `sample`: they are drawn, with the noise of the rule."),
    Column("seed", pa.int64(), "", "Seed of the counter-based noise."),
    Column("min_new_tokens", INTEGER, "tokens", "EOS was impossible before so many tokens."),
    Column("max_new_tokens", INTEGER, "tokens", "Length limit of the output."),
    Column("ignore_eos", FLAG, "", "Whether texts went on behind EOS."),
    Column("gamma_max", INTEGER, "tokens", "Tokens of every draft; no replay drafts more."),
    Column("output_ids", IDS, "token ids",
        "The target's own text, autoregressively decoded, cut at EOS (kept) or at the length limit."),
    Column("output_tokens", INTEGER, "tokens",
        "Length of `output_ids`. Each of them but the last is a place to draft from: `places` = that less 1."),
    Column("finish_reason", TEXT, "", "Why the text ended: `eos` or `length`."),
    _optional("matched", COUNTS, "tokens",
        "By place: draft tokens in front that are the target's own, `gamma_max` at most, also beyond the end of the "
        "text, as in a step that is cut there. Null where drafts are drawn under `rejection`: see `acceptance`."),
    Column("confidence", REALS, "1",
        "By place and draft token, `places` x `gamma_max` in a row: the draft's own probability of the token, before "
        "temperature."),
    Column("entropy", REALS, "nats", "In the same order: entropy of that distribution."),
    _optional("acceptance", REALS, "1",
        "By token of the text from its second on, and of `gamma_max` - 1 tokens beyond its end: min(1, q / p) of the "
        "token, with the draft's q and the target's p as they are drawn from. Given the text, this is the chance that "
        "a draft which reached the token had proposed it and was believed. Null but for drawn drafts under "
        "`rejection`, as the three below."),
    _optional("overlap", REALS, "1", "In the same order: sum of min(p, q) over the vocabulary, `beta` of the papers."),
    _optional("text_confidence", REALS, "1", "In the same order: as `confidence`, of the text's own token."),
    _optional("text_entropy", REALS, "nats", "In the same order: as `entropy`, at the text's own token."),
)

DESIGNS: tuple[Column, ...] = (
    Column("target", TEXT, "", "The target that drafts are looked for, as the user named it."),
    Column("kind", TEXT, "", "`candidate`: a shape with random weights; `known`: the best draft model that is known."),
    Column("model", TEXT, "",
        "Layers x width x heads x feed-forward of a candidate; a known draft as the user named it."),
    _optional("name", TEXT, "", "Under which a candidate is recommended for training; null for the others."),
    Column("layers", INTEGER, "layers", "As in `latencies`."),
    Column("hidden", INTEGER, "", "As in `latencies`."),
    Column("heads", INTEGER, "", "As in `latencies`."),
    _optional("feed_forward", INTEGER, "", "As in `latencies`."),
    Column("parameters", pa.int64(), "", "As in `latencies`."),
    Column("weight_bytes", pa.int64(), "bytes", "As in `latencies`."),
    Column("batch_size", INTEGER, "rows", "Rows of the forward."),
    Column("context_tokens", INTEGER, "tokens", "Keys and values of each row that stand before it."),
    _optional("forward_s", REAL, "s", "Median time of a forward over one token of each row; null unless `ok`."),
    _optional("forward_low_s", REAL, "s", "Lower end of its 95 % interval; the median where there is none."),
    _optional("forward_high_s", REAL, "s", "Upper end of that interval."),
    _optional("draft_s", REAL, "s",
        "Such a forward as part of a step, at the pace of what it is compared with; null unless `ok`."),
    Column("rival", TEXT, "", "What is fastest so far; `autoregressive` where no draft beats that."),
    Column("rival_s_per_token", REAL, "s", "Its time for a token of one row."),
    _optional("alpha", REAL, "1",
        "Of the known draft: the chance that one of its tokens is accepted, at its best gamma; null for candidates."),
    _optional("needed_alpha", REAL, "1",
        "Acceptance of a draft token, the same at every position, with which the draft is as fast as the rival; null "
        "where not even full acceptance would do."),
    _optional("needed_alpha_low", REAL, "1", "The same with a forward of `forward_low_s`."),
    _optional("needed_alpha_high", REAL, "1", "The same with a forward of `forward_high_s`."),
    _optional("needed_tokens", REAL, "tokens", "Tokens of a step at that acceptance, the target's own included."),
    _optional("needed_gamma", INTEGER, "tokens", "The gamma that is best by then."),
    _optional("pays_alpha", REAL, "1", "As `needed_alpha`, against autoregressive decoding."),
    _optional("pays_gamma", INTEGER, "tokens", "The gamma that is best by then."),
    _optional("gain", REAL, "1",
        "Speed over the rival's, were as much accepted as of the best known draft; null where none is known."),
    Column("within_budget", FLAG, "", "A forward takes no longer than was asked for."),
    Column("on_front", FLAG, "",
        "No other candidate within the budget is faster with as many layers and, within 5 %, as many parameters."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("dtype", TEXT, "", "Data type of the weights and the forward."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("attention", TEXT, "", "Attention implementation that really ran."),
    Column("status", TEXT, "", "As in `requests`; times and what follows from them are null unless `ok`."),
    _optional("reason", TEXT, "", "Why the status is not `ok`."),
)

CEILINGS: tuple[Column, ...] = (
    Column("ceiling_id", TEXT, "",
        "Hash of device, data type, threads, torch and the shapes of the matrices: what is measured once."),
    Column("device", TEXT, "", "As in `requests`."),
    Column("dtype", TEXT, "", "Data type of the matrices."),
    Column("threads", INTEGER, "threads", "CPU threads that torch was given."),
    Column("torch", TEXT, "", "Version of torch, whose kernels these are."),
    Column("matrices", INTEGER, "", "How many there are: all of a model's, each once, in the order of a forward."),
    Column("working_set_bytes", pa.int64(), "bytes", "What they occupy."),
    Column("product_rows", COUNTS, "rows", "With how many rows they were multiplied."),
    Column("products_s", REALS, "s",
        "All products, one matrix after the other, for each of those; the best of several rounds, as what follows."),
    Column("read_bytes_per_s", REAL, "bytes/s", "`working_set_bytes` over the least of them."),
    Column("copy_bytes_per_s", REAL, "bytes/s",
        "Of a copy, read and written; source and copy are together as large as the matrices, at most 1 GiB."),
    Column("operations_per_s", REAL, "1/s",
        "Multiplications and additions of a product of two square matrices, 1024 wide on a CPU and 8192 on a GPU."),
    Column("launch_s", REAL, "s", "One operation on a single number, many in a row, as Python issues them."),
    _optional("captured_launch_s", REAL, "s", "The same within a CUDA graph; null on a CPU."),
    Column("measured_at", TEXT, "UTC, ISO 8601", "When it was measured."),
)

LIMITS: tuple[Column, ...] = (
    Column("run_id", TEXT, "", "The run that counted it."),
    Column("cell", TEXT, "", "As in `requests`."),
    Column("arm", TEXT, "", "As in `requests`; arms on the core alone, and the autoregressive twin is not among them."),
    Column("batch_size", INTEGER, "rows", "Rows of the batch that it was counted on."),
    Column("steps", INTEGER, "steps", "Steps that it was counted over, in the warm-up; what follows is their mean."),
    Column("layers", INTEGER, "layers", "Of the target."),
    Column("verify_weight_bytes", REAL, "bytes",
        "Weights that the target's forward reads; of an embedding, the rows that are looked up."),
    Column("verify_operations_per_token", REAL, "1",
        "Multiplications and additions with them, for every token that is verified."),
    Column("kv_bytes_per_token", REAL, "bytes", "Keys and values of one token of context in the target's layers."),
    Column("kv_operations_per_token", REAL, "1",
        "Multiplications and additions of attention, for every token that is verified and token of its context."),
    _optional("kv_window_tokens", INTEGER, "tokens", "How far windowed layers look back; null where there are none."),
    Column("kv_windowed_share", REAL, "fraction", "Share of the target's layers that look back a window only."),
    Column("draft_weight_bytes", REAL, "bytes",
        "Weights that everything but the verification reads: draft models, heads, the target's output matrix where it "
        "is used again. A weight that several forwards read counts as often."),
    Column("draft_operations", REAL, "1", "Multiplications and additions with them, over all rows."),
    Column("draft_forwards", REAL, "forwards", "Forwards of whole models outside of the verification."),
    Column("draft_kv_bytes_per_token", REAL, "bytes",
        "Keys and values of draft models for a token of a row's context, over all their forwards of a step."),
    Column("draft_launches", REAL, "operations",
        "Operations that torch was asked for in the phase when run eagerly, views not counted; likewise below."),
    Column("verify_launches", REAL, "operations", "As above."),
    Column("accept_launches", REAL, "operations", "As above."),
    Column("update_launches", REAL, "operations", "As above."),
    Column("verify_ceiling", TEXT, "", "`ceilings.ceiling_id` of the matrices of the target's forward."),
    _optional("draft_ceiling", TEXT, "",
        "The same of what is multiplied outside of it; null where nothing is."),
)

STUDIES: tuple[Column, ...] = (
    Column("kind", TEXT, "", "`trace`, `latency` or `score`: what was to be made beside the trials of an experiment."),
    Column("subject", TEXT, "", "Of what: the models, and what they were to be asked on."),
    Column("status", TEXT, "", "As in `requests`; `ok` where a later run could make it."),
    _optional("reason", TEXT, "", "Why the status is not `ok`."),
    Column("ended_at", TEXT, "UTC, ISO 8601", "When it was tried last."),
)

# fmt: on

TABLES: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        "requests": REQUESTS,
        "steps": STEPS,
        "runs": RUNS,
        "scores": SCORES,
        "latencies": LATENCIES,
        "choosing": CHOOSING,
        "traces": TRACES,
        "designs": DESIGNS,
        "ceilings": CEILINGS,
        "limits": LIMITS,
        "studies": STUDIES,
    }
)


def arrow_schema(table: str) -> pa.Schema:
    """Parquet schema of a table, with `SCHEMA_VERSION` in its metadata."""
    fields = [pa.field(column.name, column.type, column.nullable) for column in TABLES[table]]
    return pa.schema(fields, metadata={"specbench.schema_version": str(SCHEMA_VERSION), "specbench.table": table})


def blank_row(table: str) -> dict[str, Any]:
    """A row with every column of the table and None in each: what a writer starts from."""
    return dict.fromkeys(column.name for column in TABLES[table])


def row_faults(table: str, row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row, one sentence a fault; empty when it may be stored."""
    columns = {column.name: column for column in TABLES[table]}
    faults = [f"unknown column {name!r}" for name in row if name not in columns]
    faults += [f"missing column {name!r}" for name in columns if name not in row]
    faults += [
        f"column {name!r} may not be null"
        for name, column in columns.items()
        if not column.nullable and name in row and row[name] is None
    ]
    if not faults and table == "requests":
        faults = _request_faults(row)
    if not faults and table in _TIMES:
        faults = _time_faults(row, _TIMES[table])
    if not faults and table == "studies":
        faults = _status_faults(row)
    return faults


def _status_faults(row: Mapping[str, Any]) -> list[str]:
    if row["status"] in STATUSES:
        return []
    return [f"column 'status' must be one of {', '.join(STATUSES)}, got {row['status']!r}"]


_TIMES = MappingProxyType({"latencies": "forward_s", "choosing": "choice_s"})


def _time_faults(row: Mapping[str, Any], column: str) -> list[str]:
    if faults := _status_faults(row):
        return faults
    if (row["status"] == "ok") != (row[column] is not None):
        return [f"column {column!r} is {row[column]} where status is {row['status']!r}"]
    return []


def _request_faults(row: Mapping[str, Any]) -> list[str]:
    faults = _status_faults(row)
    if row["pass"] not in PASSES:
        faults.append(f"column 'pass' must be one of {', '.join(PASSES)}, got {row['pass']!r}")
    measured = [name for name in ("output_tokens", "decode_s", "prefill_s") if row[name] is not None]
    if row["status"] != "ok" and measured:
        faults.append(f"column {measured[0]!r} must be null where status is {row['status']!r}")
    if row["status"] == "ok" and row["accepted_per_step"] is not None:
        faults += _count_faults(row)
    return faults


def _count_faults(row: Mapping[str, Any]) -> list[str]:
    """The identity between tokens, steps and acceptance; it holds for every row, whatever the method."""
    lists = ("accepted_per_step", "drafted_depth_per_step", "drafted_nodes_per_step")
    faults = [
        f"column {name!r} has {len(row[name])} entries for {row['steps']} steps"
        for name in lists
        if row[name] is not None and len(row[name]) != row["steps"]
    ]
    emitted = int(row["prefill_tokens"] or 1) + sum(int(count) + 1 for count in row["accepted_per_step"])
    emitted -= int(row["overshoot_tokens"] or 0)
    if emitted != row["output_tokens"]:
        faults.append(f"column 'output_tokens' is {row['output_tokens']}, but its steps emitted {emitted}")
    return faults


_PREFACE = """\
# Results

A run of `experiments/NAME.yaml` writes one folder, `results/NAME/MACHINE/`:

    requests.parquet/   one row per request, arm, block, repeat and pass; a folder of parts, one part a block
    steps.parquet/      one row per step of the phase pass; parts named as those of requests
    runs.parquet        one row per run: code, versions, machine, the resolved experiment
    report.html         drawn by `specbench report results/`, with figures/ and tables/

Runs stay out of git. `pandas.read_parquet("results/NAME/MACHINE/requests.parquet")` reads a table without
specbench; `specbench.records.store.Store(folder).read("requests")` also checks the schema version and leaves
out the steps of unfinished blocks.

* A **block** is one batch of prompts with every arm of its cell run on it, and it is the unit of resume: its
  rows appear together when its last arm ends, or not at all. A block that was cut is run again whole.
* **Times belong to a batch.** `prefill_s`, `ttft_s` and `decode_s` are stored with each row of their
  `batch_id`; take one per `batch_id`, never the sum over rows. Only `row_done_s` is the row's own.
* **The first token** comes from the prefill. Decode figures therefore count `output_tokens - 1` tokens.
* **A failed arm is rows**: its planned requests with a `status` and a `reason`, every metric null, never 0.
* The **headline** pass gives every published time. The **phase** pass only says where a step's time goes.
* Rows of different targets, data types, devices or prompts are never divided by one another.

This file is generated from `specbench/records/schema.py`. To rebuild it: `python -m specbench.records.schema`
"""


def markdown() -> str:
    """The text of ``results/README.md``: the layout of a results folder and every column."""
    parts = [_PREFACE, f"Schema version {SCHEMA_VERSION}.\n"]
    titles = {
        "requests": "one row per request, arm, block, repeat and pass",
        "steps": "one row per `batch_id` and step of the phase pass",
        "runs": "one row per run",
        "scores": "one row per model, data set and metric; of `specbench score`",
        "latencies": "one row per model, mode and point; of `specbench latency`",
        "choosing": "one row per model, mode and way of choosing tokens; of `specbench latency --temperature`",
        "traces": "one row per target, draft and prompt; of `specbench trace`",
        "studies": "one row per trace, forward times or score that an experiment's run could not make at first",
        "designs": "one row per shape; of `specbench design`",
        "ceilings": "one row per device and set of matrices: what it does in a second at best",
        "limits": "one row per cell and arm: what a step has to move, compute and launch",
    }
    for table, columns in TABLES.items():
        lines = [
            f"## `{table}`: {titles[table]}\n",
            "| column | type | unit | null | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [_markdown_row(column) for column in columns]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _markdown_row(column: Column) -> str:
    kind = str(column.type).replace("list<item: ", "list<").replace("element: ", "")
    null = "may be" if column.nullable else ""
    return f"| `{column.name}` | {kind} | {column.unit} | {null} | {column.meaning} |"


def _main() -> None:
    """Write ``results/README.md`` of the checkout that this file lies in, or the path given as argument."""
    default = Path(__file__).resolve().parents[2] / "results" / "README.md"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    path.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    _main()
