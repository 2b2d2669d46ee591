"""Every row of the tables of rules is broken once, and its message names the field, its value and a way out that works."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config import RunConfig, load_config
from pretrain.data.token_shards import Manifest, ShardRecord, SpecialTokens, SplitRecord
from pretrain.errors import ConfigError, DataError, PretrainError, StorageError
from pretrain.prepare_rules import PREPARE_RULES
from pretrain.resolve import Machine, World, resolve
from pretrain.rules import CONFIG_RULES, check_config, check_preparation
from pretrain.site_rules import (
    DATA_RULES,
    DISK_RULES,
    SITE_RULES,
    Disk,
    Prepared,
    Site,
    check_data,
    check_disk,
    check_site,
)

SMALL = """
model: {d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128, max_sequence_length: 64}
data: {dir: data/small, sequence_length: 32}
train: {steps: 100, global_batch_tokens: 256, micro_batch_sequences: 4, device: cpu, precision: fp32}
"""
SEQ2SEQ = [
    "data.objective=seq2seq",
    "data.source_length=32",
    "model.architecture=encoder_decoder",
    "model.num_encoder_layers=2",
]
CORPUS = "data.prepare.corpus.source"
TWO_CORES = Machine(cores=2)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunConfig]:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)

    def resolved(*overrides: str, machine: Machine = TWO_CORES, world: World | None = None) -> RunConfig:
        return resolve(load_config(file, overrides), machine, world or World(), vocab_size=300)

    return resolved


def manifest(kind: str = "text", vocab_size: int = 300, train: int = 10_000, validation: int = 500) -> Manifest:
    def split(tokens: int) -> SplitRecord:
        record = ShardRecord("train/0.tokens", tokens, min(tokens, 10), tokens * 4, tokens * 2, "0" * 32)
        return SplitRecord.of([record])

    return Manifest(
        kind="pairs" if kind == "pairs" else "text",
        vocab_size=vocab_size,
        tokenizer_hash="0" * 32,
        special=SpecialTokens(0, 1, 2),
        splits={"train": split(train), "validation": split(validation)},
    )


def message(error: type[PretrainError], judge: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        judge()
    return str(caught.value)


def test_the_small_config_keeps_every_rule(make: Callable[..., RunConfig]) -> None:
    for overrides in ([], SEQ2SEQ):
        config = make(*overrides)
        check_config(config)
        check_site(Site(config, TWO_CORES))
        check_disk(Disk(config, 10**9))
        check_data(Prepared(config, manifest("pairs" if overrides else "text")))


def _experts(**changes: int) -> str:
    moe = {"num_experts": 4, "experts_per_token": 2, "d_ff": 32, **changes}
    return "model.moe={" + ", ".join(f"{name}: {value}" for name, value in moe.items()) + "}"


# Rule -> what breaks it, what its message names, and the overrides that its message proposes.
CONFIG_CASES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "heads_divide_width": (["model.num_heads=3"], ["model.num_heads=3", "model.d_model=64"], ["model.num_heads=8"]),
    "kv_heads_divide_heads": (
        ["model.num_kv_heads=3"],
        ["model.num_kv_heads=3", "1, 2 or 4"],
        ["model.num_kv_heads=2"],
    ),
    "rotary_needs_even_heads": (
        ["model.positions=rotary", "model.head_dim=5"],
        ["model.positions=rotary", "not 5", "model.head_dim=6"],
        ["model.head_dim=6"],
    ),
    "sinusoids_need_even_width": (
        ["model.positions=sinusoidal", "model.d_model=65", "model.head_dim=8"],
        ["model.positions=sinusoidal", "not 65"],
        ["model.d_model=66"],
    ),
    "learned_positions_reach": (
        ["data.sequence_length=128", "train.micro_batch_sequences=1"],
        ["data.sequence_length=128", "model.max_sequence_length=64"],
        ["model.max_sequence_length=128"],
    ),
    "encoder_has_layers": (
        [*SEQ2SEQ, "model.num_encoder_layers=0"],
        ["model.num_encoder_layers=0", "model.architecture=encoder_decoder"],
        ["model.num_encoder_layers=2"],
    ),
    "decoder_has_no_encoder": (
        ["model.num_encoder_layers=2"],
        ["model.num_encoder_layers=2", "model.architecture=decoder"],
        ["model.num_encoder_layers=0"],
    ),
    "experts_hold_choices": (
        [_experts(num_experts=4, experts_per_token=5)],
        ["model.moe.experts_per_token=5", "model.moe.num_experts=4"],
        ["model.moe.experts_per_token=4"],
    ),
    "one_choice_trains_its_router": (
        [_experts(experts_per_token=1, auxiliary_loss=0)],
        ["model.moe.experts_per_token=1", "normalize_weights=true", "router_z_loss"],
        ["model.moe.normalize_weights=false"],
    ),
    "dense_layers_leave_experts": (
        [_experts(first_dense_layers=2)],
        ["model.moe.first_dense_layers=2", "use 1 or fewer"],
        ["model.moe.first_dense_layers=1"],
    ),
    "tiles_are_of_dense_layers": (
        [_experts(), "train.feed_forward_tile_tokens=64"],
        ["train.feed_forward_tile_tokens=64", "train.recompute=full"],
        ["train.feed_forward_tile_tokens=null", "train.recompute=full"],
    ),
    "tp_divides_experts": (
        [_experts(d_ff=30), "layout.tp=4", "layout.dp=1"],
        ["layout.tp=4", "model.moe.d_ff=30", "tp=1 or 2"],
        ["layout.tp=2"],
    ),
    "ep_needs_experts": (["layout.ep=2", "layout.dp=2"], ["layout.ep=2", "model.moe=null"], ["layout.ep=1"]),
    "ep_divides_experts": (
        [_experts(num_experts=6), "layout.ep=4", "layout.dp=4", "train.global_batch_tokens=512"],
        ["layout.ep=4", "model.moe.num_experts=6", "ep=1 or 2"],
        ["layout.ep=2"],
    ),
    "ep_divides_data_ranks": (
        [_experts(), "layout.ep=4", "layout.dp=2"],
        ["layout.ep=4", "dp=2", "ep=1 or 2"],
        ["layout.ep=2"],
    ),
    "ep_needs_zero_below_3": (
        [_experts(), "layout.ep=2", "layout.dp=2", "layout.zero_stage=3"],
        ["layout.zero_stage=3", "layout.ep=2", "deepspeed/runtime/engine.py"],
        ["layout.ep=1"],
    ),
    "seq2seq_needs_encoder": (
        ["data.objective=seq2seq", "data.source_length=32"],
        ["data.objective=seq2seq", "not decoder"],
        ["model.architecture=encoder_decoder", "model.num_encoder_layers=1"],
    ),
    "causal_needs_decoder": (
        ["model.architecture=encoder_decoder", "model.num_encoder_layers=1"],
        ["data.objective=causal", "not encoder_decoder"],
        ["data.objective=seq2seq", "data.source_length=32"],
    ),
    "source_length_needed": (
        [*SEQ2SEQ, "data.source_length=null"],
        ["data.source_length is null", "data.sequence_length=32"],
        ["data.source_length=32"],
    ),
    "source_length_unused": (["data.source_length=32"], ["data.source_length=32"], ["data.source_length=null"]),
    "tp_divides_heads": (["layout.tp=8"], ["layout.tp=8", "model.num_heads=4", "tp=1, 2 or 4"], ["layout.tp=4"]),
    "tp_divides_feed_forward": (
        ["layout.tp=4", "model.d_ff=130"],
        ["layout.tp=4", "model.d_ff=130", "tp=1 or 2"],
        ["layout.tp=2"],
    ),
    "ulysses_divides_heads": (
        ["layout.ulysses=4", "layout.tp=2"],
        ["layout.ulysses=4", "layout.tp=2", "model.num_heads=4", "ulysses=1 or 2", "layout.ring=4"],
        ["layout.ulysses=1", "layout.ring=4"],
    ),
    "context_divides_sequences": (
        [*SEQ2SEQ, "layout.ring=2", "data.source_length=30"],
        ["data.sequence_length=32", "data.source_length=30", "layout.ring=2", "divide by 4", "28 or 32"],
        ["data.source_length=28"],
    ),
    "sequence_parallel_divides_sequences": (
        ["layout.sequence_parallel=enabled", "layout.tp=2", "data.sequence_length=31", "train.global_batch_tokens=248"],
        ["layout.sequence_parallel=enabled", "layout.tp=2", "data.sequence_length=31", "multiples of 2", "30 or 32"],
        ["layout.sequence_parallel=disabled"],
    ),
    "stages_have_layers": (["layout.pp=7"], ["layout.pp=7", "6 layers", "pp=6"], ["layout.pp=6"]),
    "pipeline_needs_zero_1": (
        ["layout.pp=2", "layout.zero_stage=2"],
        ["layout.zero_stage=2", "layout.pp=2", "micro-batches"],
        ["layout.zero_stage=1"],
    ),
    "zero_0_is_fp32": (
        ["layout.zero_stage=0", "train.precision=bf16"],
        ["layout.zero_stage=0", "train.precision=bf16", "layout.zero_stage=1"],
        ["train.precision=fp32"],
    ),
    "fp16_needs_gpu": (
        ["train.precision=fp16"],
        ["train.precision=fp16", "train.device=cpu", "is_fp16_supported", "train.precision=bf16"],
        ["train.precision=bf16"],
    ),
    "zero_bubble_needs_pipeline": (
        ["layout.pipeline_schedule=zb-h1"],
        ["layout.pipeline_schedule=zb-h1", "layout.pp=1"],
        ["layout.pp=2"],
    ),
    "offload_needs_zero": (
        ["layout.offload=optimizer", "layout.zero_stage=0"],
        ["layout.offload=optimizer", "layout.zero_stage=0", "offload_config.py", "layout.zero_stage=1"],
        ["layout.zero_stage=1"],
    ),
    "offloaded_parameters_need_zero_3": (
        ["layout.offload=optimizer_and_parameters", "layout.zero_stage=2"],
        ["layout.offload=optimizer_and_parameters", "layout.zero_stage=2", "offload_config.py", "layout.zero_stage=3"],
        ["layout.zero_stage=3"],
    ),
    "weights_or_stages": (
        ["data.order.weights={a: 1.0}", "data.order.stages=[{weights: {a: 1.0}}]"],
        ["data.order.weights and data.order.stages (1 of them)"],
        ["data.order.stages=[]"],
    ),
    "weights_are_shares": (
        ["data.order.weights={a: 1.5, b: -0.5}"],
        ["data.order.weights.b=-0.5"],
        ["data.order.weights.a=1.0", "data.order.weights.b=0.0"],
    ),
    "weights_sum_to_one": (
        ["data.order.stages=[{tokens: 64, weights: {a: 1.0}}, {weights: {a: 0.5, b: 0.3}}]"],
        ["data.order.stages.1.weights sum to 0.8", "{a: 0.625, b: 0.375}"],
        ["data.order.stages.1.weights.b=0.5"],
    ),
    "stages_end": (
        ["data.order.stages=[{weights: {a: 1.0}}, {weights: {b: 1.0}}]"],
        ["data.order.stages.0.tokens is null"],
        ["data.order.stages.0.tokens=64"],
    ),
    "stages_hold_a_sequence": (
        ["data.order.stages=[{tokens: 31, weights: {a: 1.0}}, {weights: {b: 1.0}}]"],
        ["data.order.stages.0.tokens=31", "data.sequence_length=32"],
        ["data.order.stages.0.tokens=32"],
    ),
    "eras_hold_a_sequence": (
        ["data.order.method=eras", "data.order.era_tokens=31"],
        ["data.order.era_tokens=31", "data.sequence_length=32"],
        ["data.order.era_tokens=1073741824"],
    ),
    "follow_needs_eras": (
        ["data.manifest=follow"],
        ["data.manifest=follow", "data.order.method=shuffle"],
        ["data.order.method=eras"],
    ),
    "cache_reads_windows": (
        [*SEQ2SEQ, "data.cache.dir=cache"],
        ["data.cache", "data.objective=seq2seq"],
        ["data.cache=null"],
    ),
    "cache_reads_finished_data": (
        ["data.cache.dir=cache", "data.manifest=follow", "data.order.method=eras"],
        ["data.cache", "data.manifest=follow"],
        ["data.cache=null"],
    ),
    "follow_needs_windows": (
        [*SEQ2SEQ, "data.manifest=follow", "data.order.method=eras"],
        ["data.manifest=follow", "data.objective=seq2seq"],
        ["data.manifest=finished"],
    ),
    "follow_needs_weights": (
        [
            *("data.manifest=follow", "data.order.method=eras"),
            *(f"data.prepare.corpora.{name}.source=standard_library" for name in ("a", "b")),
        ],
        ["data.order.weights is null", "data.manifest=follow"],
        ["data.order.weights={a: 0.5, b: 0.5}"],
    ),
    "batch_divides": (
        ["train.global_batch_tokens=300"],
        ["train.global_batch_tokens=300", "= 128", "use 256 or 384"],
        ["train.global_batch_tokens=384"],
    ),
    "warmup_ends": (
        ["schedule.warmup_steps=100"],
        ["schedule.warmup_steps=100", "train.steps=100", "use 10"],
        ["schedule.warmup_steps=10"],
    ),
    "decay_follows_warmup": (
        ["schedule.warmup_steps=10", "schedule.decay_steps=10"],
        ["schedule.decay_steps=10", "schedule.warmup_steps=10"],
        ["schedule.decay_steps=null"],
    ),
    "noam_needs_warmup": (
        ["schedule.name=noam", "optimizer.peak_lr=1.0"],
        ["schedule.warmup_steps=0", "schedule.name=noam", "here 10"],
        ["schedule.warmup_steps=10"],
    ),
    "noam_peak_is_factor": (
        ["schedule.name=noam", "schedule.warmup_steps=10"],
        ["optimizer.peak_lr=0.0003", "schedule.name=noam"],
        ["optimizer.peak_lr=1.0"],
    ),
    "top_p_is_share": (["samples.top_p=1.5"], ["samples.top_p=1.5", "use 1.0"], ["samples.top_p=1.0"]),
}

PREPARE_CASES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "corpus_is_named_once": (
        [f"{CORPUS}=standard_library", "data.prepare.corpora.code.source=standard_library"],
        ["data.prepare.corpus and data.prepare.corpora are both set"],
        ["data.prepare.corpus=null"],
    ),
    "corpus_needs_paths": (
        [f"{CORPUS}=jsonl"],
        ["data.prepare.corpus.paths is empty", f"{CORPUS}=jsonl"],
        ["data.prepare.corpus.paths=[corpus/**/*.txt]"],
    ),
    "catalogues_need_place": (
        [*SEQ2SEQ, f"{CORPUS}=message_catalogues"],
        ["data.prepare.corpus.paths and .packages are empty"],
        ["data.prepare.corpus.packages=[some-package]"],
    ),
    "hub_needs_revision": (
        [f"{CORPUS}=hub", "data.prepare.corpus.name=some/set"],
        ["data.prepare.corpus.name=some/set", ".revision=null", "40 digits"],
        [f"data.prepare.corpus.revision={'0123456789' * 4}"],
    ),
    "aligned_text_has_two_sides": (
        [*SEQ2SEQ, f"{CORPUS}=aligned_text", "data.prepare.corpus.paths=[a.en]"],
        ["data.prepare.corpus.target_paths names 0 files", ".paths names 1"],
        ["data.prepare.corpus.target_paths=[a.de]"],
    ),
    "pairs_have_two_fields": (
        [*SEQ2SEQ, f"{CORPUS}=jsonl", "data.prepare.corpus.paths=[a.jsonl]", "data.prepare.corpus.source_field=en"],
        ["data.prepare.corpus.source_field=en", ".target_field=null"],
        ["data.prepare.corpus.target_field=de"],
    ),
    "weights_name_the_corpora": (
        [f"{CORPUS}=standard_library", "data.order.weights={code: 1.0}"],
        ["no weight to the corpus code", "each of main"],
        ["data.order.weights={main: 1.0}"],
    ),
    "cleaning_is_of_text": (
        [
            *SEQ2SEQ,
            f"{CORPUS}=message_catalogues",
            "data.prepare.corpus.packages=[a]",
            "data.prepare.dedup.method=minhash",
        ],
        ["data.prepare.dedup.method", "the corpus gives pairs"],
        ["data.prepare.dedup.method=exact"],
    ),
    "bands_fit_the_signature": (
        [f"{CORPUS}=standard_library", "data.prepare.dedup.bands=32"],
        ["data.prepare.dedup.bands=32", "need 192 slots", "at most 21 bands"],
        ["data.prepare.dedup.bands=21"],
    ),
    "corpus_fits_objective": (
        [*SEQ2SEQ, f"{CORPUS}=standard_library"],
        ["data.objective=seq2seq", f"{CORPUS}=standard_library"],
        ["data.prepare.corpus={source: message_catalogues, packages: [some-package]}"],
    ),
    "vocabulary_holds_bytes": (
        [f"{CORPUS}=standard_library", "data.prepare.tokenizer.vocab_size=100"],
        ["data.prepare.tokenizer.vocab_size=100", "at least 259"],
        ["data.prepare.tokenizer.vocab_size=8192"],
    ),
}


@pytest.mark.parametrize("name", [rule.name for rule in (*CONFIG_RULES, *PREPARE_RULES)])
def test_a_broken_rule_names_field_and_fix_and_the_fix_works(name: str, make: Callable[..., RunConfig]) -> None:
    breaking, named, fix = (CONFIG_CASES | PREPARE_CASES)[name]
    told = message(ConfigError, lambda: check_config(make(*breaking)))
    for text in named:
        assert text in told
    check_config(make(*breaking, *fix))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_pipeline_takes_zero_1_alone(stage: int, make: Callable[..., RunConfig]) -> None:
    check_config(make(f"layout.zero_stage={stage}", "layout.pp=1"))
    told = message(ConfigError, lambda: check_config(make("layout.pp=2", f"layout.zero_stage={stage}")))
    assert f"layout.zero_stage={stage}" in told and "set layout.zero_stage=1" in told


def test_all_broken_rules_are_told_at_once(make: Callable[..., RunConfig]) -> None:
    told = message(
        ConfigError, lambda: check_config(make("layout.tp=3", "train.global_batch_tokens=300", "samples.top_p=2"))
    )
    assert told.startswith("4 settings do not fit:") and len(told.splitlines()) == 5


def test_a_rule_of_a_corpus_names_the_one_that_breaks_it(make: Callable[..., RunConfig]) -> None:
    named = ["data.prepare.corpora.code.source=standard_library", "data.prepare.corpora.web.source=jsonl"]
    told = message(ConfigError, lambda: check_config(make(*named)))
    assert told.startswith("data.prepare.corpora.web.paths is empty")
    check_config(make(*named, "data.prepare.corpora.web.paths=[web/*.jsonl]"))


def test_a_data_section_without_a_corpus_is_refused(make: Callable[..., RunConfig]) -> None:
    told = message(ConfigError, lambda: check_config(make("data.prepare.validation_fraction=0.1")))
    assert told.startswith("data.prepare.corpus is missing")


def test_pairs_of_rows_fit_an_encoder_decoder(make: Callable[..., RunConfig]) -> None:
    fields = ["data.prepare.corpus.source_field=en", "data.prepare.corpus.target_field=de"]
    rows = [f"{CORPUS}=jsonl", "data.prepare.corpus.paths=[pairs.jsonl]", *fields]
    check_config(make(*SEQ2SEQ, *rows))
    assert "gives pairs, which data.objective=causal does not read" in message(
        ConfigError, lambda: check_config(make(*rows))
    )


def test_every_rule_of_every_table_has_a_name_of_its_own() -> None:
    names = [rule.name for rule in (*CONFIG_RULES, *PREPARE_RULES, *SITE_RULES, *DISK_RULES, *DATA_RULES)]
    assert len(set(names)) == len(names)


def test_preparation_without_a_recipe_is_told(make: Callable[..., RunConfig]) -> None:
    told = message(ConfigError, lambda: check_preparation(make()))
    assert "data.prepare is missing" in told
    recipe = re.search(r"extends: (\S+\.yaml)", told)
    assert recipe is not None
    rest = ["d_model=64", "num_layers=1", "num_heads=1", "d_ff=64"]
    lengths = ["steps=1", "global_batch_tokens=256", "micro_batch_sequences=1"]
    load_config(recipe[1], [*(f"model.{field}" for field in rest), *(f"train.{field}" for field in lengths)])


SITE_CASES: dict[str, tuple[list[str], Machine, World, list[str]]] = {
    "layout_fills_world": (
        ["layout.dp=3"],
        TWO_CORES,
        World(ranks_per_node=4),
        ["--nproc: 4 ranks", "dp=3", "start 3", "layout.dp=auto"],
    ),
    "nodes_share_ranks": (["layout.dp=3"], TWO_CORES, World(nodes=2), ["--nnodes 2", "3 ranks"]),
    "cuda_is_there": (["train.device=cuda"], TWO_CORES, World(), ["train.device=cuda", "set train.device=cpu"]),
    "gpus_suffice": (
        ["train.device=cuda", "layout.dp=4"],
        Machine(cores=8, gpus=2),
        World(),
        ["4 ranks", "2 GPU(s)", "layout.dp smaller"],
    ),
}


@pytest.mark.parametrize("name", [rule.name for rule in SITE_RULES])
def test_a_layout_that_cannot_run_here_is_told(name: str, make: Callable[..., RunConfig]) -> None:
    overrides, machine, world, named = SITE_CASES[name]
    config = make(*overrides, machine=machine, world=world)
    told = message(ConfigError, lambda: check_site(Site(config, machine, world)))
    for text in named:
        assert text in told


def test_gpus_of_all_nodes_count(make: Callable[..., RunConfig]) -> None:
    machine = Machine(cores=8, gpus=2)
    config = make("train.device=cuda", "layout.dp=4", machine=machine)
    check_site(Site(config, machine, World(nodes=2)))


def test_a_disk_without_room_for_the_checkpoints_is_told(make: Callable[..., RunConfig]) -> None:
    assert [rule.name for rule in DISK_RULES] == ["disk_holds_checkpoints"]
    config = make("checkpoint.keep=2")
    size = Disk(config, 0).checkpoint_bytes
    check_disk(Disk(config, 3 * size))
    told = message(StorageError, lambda: check_disk(Disk(config, 3 * size - 1)))
    assert "run.dir=" in told and "checkpoint.keep=2" in told and "free some space" in told


DATA_CASES: dict[str, tuple[list[str], Manifest, list[str]]] = {
    "vocabulary_covers_tokenizer": (
        ["model.vocab_size=299"],
        manifest(),
        ["model.vocab_size=299", "data.dir=", "300", "model.vocab_size=null"],
    ),
    "data_kind_fits_objective": ([], manifest(kind="pairs"), ["data.dir=", "holds pairs", "needs text"]),
    "training_data_suffice": ([], manifest(train=32), ["32 training tokens", "data.sequence_length=32"]),
    "validation_data_suffice": ([], manifest(validation=0), ["no validation documents", "validation_fraction"]),
}


@pytest.mark.parametrize("name", [rule.name for rule in DATA_RULES])
def test_data_that_do_not_serve_are_told(name: str, make: Callable[..., RunConfig]) -> None:
    overrides, found, named = DATA_CASES[name]
    told = message(DataError, lambda: check_data(Prepared(make(*overrides), found)))
    for text in named:
        assert text in told


def test_a_vocabulary_may_have_more_rows_than_the_tokenizer(make: Callable[..., RunConfig]) -> None:
    check_data(Prepared(make("model.vocab_size=320"), manifest()))
