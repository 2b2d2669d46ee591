import pytest

from pretrain.model.flops import (
    block_forward_flops,
    flops_per_token,
    forward_flops_per_token,
    head_forward_flops,
    num_parameters,
)
from pretrain.model.settings import ModelSettings, MoESettings

GPT = ModelSettings(vocab_size=100, d_model=8, num_layers=3, num_heads=2, d_ff=32, max_sequence_length=16)


def test_decoder_counts_six_a_parameter_that_is_not_looked_up_and_attention_in_full():
    per_layer = 4 * 8 * 8 + 4 * 8 + 2 * 8 * 32 + 32 + 8 + 2 * 2 * 8
    by_hand = 6 * (3 * per_layer + 2 * 8 + 100 * 8) + 12 * 3 * 8 * 16
    assert flops_per_token(GPT, 16) == by_hand


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_looked_up_parameters_cost_nothing(positions: str, embeddings: str):
    model = GPT.model_copy(update={"positions": positions, "embeddings": embeddings})
    assert flops_per_token(model, 16) == flops_per_token(GPT, 16)


def test_attention_is_as_wide_as_its_heads_not_as_the_model():
    wide = GPT.model_copy(update={"head_dim": 8})
    attention = flops_per_token(wide, 1016) - flops_per_token(wide, 16)
    assert attention == 12 * 3 * (2 * 8) * 1000


def test_llama3_8b_takes_the_hand_count_at_8192():
    model = ModelSettings(
        vocab_size=128256,
        d_model=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        d_ff=14336,
        norm="rmsnorm",
        positions="rotary",
        activation="swiglu",
        biases=(),
        embeddings="untied",
        max_sequence_length=8192,
    )
    assert flops_per_token(model, 8192) == 6 * (8_030_261_248 - 128_256 * 4096) + 12 * 32 * 4096 * 8192


def test_encoder_work_enters_once_a_source_token():
    model = ModelSettings(
        architecture="encoder_decoder",
        vocab_size=100,
        d_model=8,
        num_layers=2,
        num_encoder_layers=3,
        num_heads=2,
        d_ff=32,
        positions="sinusoidal",
        norm_position="post",
        biases=("feed_forward", "norm"),
    )
    source, target = 20, 10
    feed_forward = 2 * 8 * 32 + 32 + 8
    encoder_sequence = 3 * source * (2 * (4 * 64 + feed_forward + 2 * 16) + 4 * 8 * source)
    decoder_token = 2 * (4 * 64 + 2 * 64 + feed_forward + 3 * 16) + 4 * 8 * target + 4 * 8 * source
    memory_projection = 2 * source * 2 * (2 * 64)
    decoder_sequence = 2 * target * decoder_token + memory_projection + target * 2 * 100 * 8
    assert forward_flops_per_token(model, target, source) * target == pytest.approx(encoder_sequence + decoder_sequence)


def test_parts_of_a_decoder_add_up_to_its_forward():
    final_norm = 2 * 2 * 8
    parts = 3 * block_forward_flops(GPT, "decoder", 16) + head_forward_flops(GPT) + final_norm
    assert parts == forward_flops_per_token(GPT, 16) == flops_per_token(GPT, 16) / 3


def test_model_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        num_parameters(GPT.model_copy(update={"vocab_size": None}))


def test_experts_count_all_of_their_parameters_and_work_for_those_that_a_token_meets():
    moe = MoESettings(num_experts=8, experts_per_token=2, d_ff=16, num_shared_experts=1, first_dense_layers=1)
    model = GPT.model_copy(update={"moe": moe})
    expert, router = 2 * 8 * 16 + 16 + 8, 8 * 8
    dense = 2 * 8 * 32 + 32 + 8
    assert num_parameters(model) - num_parameters(GPT) == 2 * (9 * expert + router - dense)
    assert num_parameters(model, "active") - num_parameters(GPT) == 2 * (3 * expert + router - dense)
    assert flops_per_token(model, 16) - flops_per_token(GPT, 16) == 6 * 2 * (3 * expert + router - dense)


def test_stages_are_balanced_by_what_a_token_meets():
    moe = MoESettings(num_experts=64, experts_per_token=1, d_ff=32)
    model = GPT.model_copy(update={"moe": moe})
    experts = block_forward_flops(model, "decoder", 16, feed_forward="experts")
    assert experts - block_forward_flops(GPT, "decoder", 16) == 2 * 64 * 8  # the router
