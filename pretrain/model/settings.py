"""The model part of the config. A family (GPT-3, PaLM, Llama, the 2017 Transformer) is a value of it, never code."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings


class InitializationSettings(Settings):
    """How the weights start. Every shard is drawn counter-based from the seed and the parameter's global name."""

    scheme: Literal["normal", "xavier_uniform", "fan_in"] = "normal"
    """`normal`: N(0, std), GPT-2. `xavier_uniform`: Glorot and Bengio 2010, used by the 2017 Transformer. `fan_in`: a standard
    deviation of (input features) ** -0.5 for every projection (PaLM, section 5)."""
    std: PositiveFloat = 0.02
    """Standard deviation of linear weights with `normal`; GPT-2's value."""
    embedding_std: PositiveFloat | None = None
    """Standard deviation of embeddings; None: `std` (for xavier_uniform: d_model ** -0.5; for fan_in: 1, PaLM,
    section 5)."""
    residual_scale: Literal["none", "depth"] = "depth"
    """`depth`: the two projections that write to the residual stream start smaller by sqrt(2 x layers) (GPT-2, section 2.3)."""


class MoESettings(Settings):
    """A mixture of experts in place of the feed-forward layer (Shazeer et al. 2017; Fedus et al. 2021, Switch Transformer).

    y = shared(x) + routed_scale x sum over the k experts e with the largest score_e + bias_e of weight_e x expert_e(x). Scores
    are of logits = x router.weight^T in fp32; the bias chooses alone and is not in the weights. Padding (a document number below
    0) passes the shared experts only. Experts have biases where `model.biases` names feed_forward, the router has none.
    """

    num_experts: PositiveInt
    """Routed experts of a layer."""
    experts_per_token: PositiveInt
    """Experts that each token is sent to: k."""
    d_ff: PositiveInt
    """Inner width of an expert."""
    num_shared_experts: NonNegativeInt = 0
    """Experts that every token passes (Dai et al. 2024, DeepSeekMoE), as one feed-forward of their summed width."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Of the router's logits: over all experts, or of each by itself (DeepSeek-V3, section 2.1.2)."""
    normalize_weights: bool = True
    """Whether the weights of a token's k experts are divided by their sum (Mixtral, Qwen3), or are the scores as they are
    (Switch)."""
    routed_scale: PositiveFloat = 1.0
    """Factor on the routed experts' output (DeepSeek-V3: 2.5)."""
    capacity_factor: PositiveFloat | None = None
    """Tokens that an expert takes of one sequence, in multiples of an equal share: ceil(capacity_factor x k x S / num_experts), S
    being the sequence's length with its padding. Tokens take their places in the order of positions; later ones are dropped
    from that expert, whose term is then missing from their sum (the other weights stay). None: dropless. Per sequence, so that it
    does not depend on the micro-batch."""
    balance: Literal["auxiliary_loss", "bias", "none"] = "auxiliary_loss"
    """What keeps experts equally loaded. `auxiliary_loss`: Fedus et al. 2021, equation 4, per sequence. `bias`: a bias on the
    scores that choose, moved after each step against the load (Wang et al. 2024, Auxiliary-loss-free load balancing)."""
    auxiliary_loss: NonNegativeFloat = 0.01
    """Coefficient of num_experts x sum over e of f_e P_e, of a sequence's T tokens that are not padding: f_e = tokens that chose
    e / (k T), before a capacity drops any; P_e = mean score of e (sigmoid scores divided by their sum over all experts). Summed
    over layers, averaged over all sequences of the global batch (one of padding alone counts 0)."""
    router_z_loss: NonNegativeFloat = 0.0
    """Coefficient of the mean over the same T tokens of log-sum-exp squared of the router's logits (Zoph et al. 2022, ST-MoE,
    equation 5); summed and averaged likewise."""
    bias_update_rate: PositiveFloat = 0.001
    """Step of the bias, with `balance: bias` (Wang et al. 2024, section 4): after each update of the parameters bias_e += rate x
    sign(mean load - load_e), load_e being the tokens of the global batch that chose e, those included that a capacity dropped."""
    first_dense_layers: NonNegativeInt = 0
    """Blocks at the start of each stack that keep the plain feed-forward of `model.d_ff` (DeepSeekMoE, section 4.1.2)."""


class ModelSettings(Settings):
    """A transformer, decoder-only or encoder-decoder."""

    architecture: Literal["decoder", "encoder_decoder"] = "decoder"
    """Decoder-only (causal), or the 2017 Transformer's encoder and decoder."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; None: the tokenizer's size, filled in once the data is known. Padding to a multiple of tp is
    internal to the layers and never stored."""
    d_model: PositiveInt
    """Width of the residual stream."""
    num_layers: PositiveInt
    """Blocks of the decoder."""
    num_encoder_layers: NonNegativeInt = 0
    """Blocks of the encoder; 0 for a decoder-only model."""
    num_heads: PositiveInt
    """Query heads."""
    num_kv_heads: PositiveInt | None = None
    """Key-value heads: None for multi-head (as many as query heads), 1 for multi-query (Shazeer 2019), between for
    grouped-query attention (Ainslie et al. 2023)."""
    head_dim: PositiveInt | None = None
    """Width of a head; None: d_model / num_heads."""
    d_ff: PositiveInt
    """Inner width of the feed-forward layer (of each of the two halves for swiglu)."""
    moe: MoESettings | None = None
    """Mixture of experts in every block (of an encoder-decoder: of both stacks); None: a dense model."""
    qk_norm: Literal["none", "head"] = "none"
    """`head`: in every attention, an RMSNorm of `norm_epsilon` over each head's queries and one over each head's keys, before
    rotary positions; each has one weight of head_dim for all heads (Qwen3)."""
    max_sequence_length: PositiveInt = 2048
    """Longest sequence, in tokens; the number of rows of learned positions."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    norm_position: Literal["pre", "post"] = "pre"
    """`post`: x = norm(x + f(x)), the 2017 paper; `pre`: x = x + f(norm(x)), with a final norm."""
    block: Literal["serial", "parallel"] = "serial"
    """`parallel`: attention and feed-forward read the same normed input and are summed (PaLM, section 2)."""
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "learned"
    rotary_base: PositiveFloat = 10000.0
    """Base of the rotary frequencies (Su et al. 2021); Llama 3 uses 500,000."""
    activation: Literal["relu", "gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    biases: tuple[Literal["attention", "feed_forward", "norm"], ...] = Field(
        default=("attention", "feed_forward", "norm"), strict=False
    )
    """The parts that have bias vectors; an empty list for PaLM and Llama. An RMSNorm never has one."""
    embeddings: Literal["tied", "untied"] = "tied"
    """`tied`: the output projection is the transposed embedding (Press and Wolf 2017); in an encoder-decoder the source
    embedding too (Vaswani et al. 2017, section 3.4)."""
    embedding_scale: Literal["none", "sqrt_d_model"] = "none"
    """`sqrt_d_model`: embeddings are multiplied by it at the input (Vaswani et al. 2017, section 3.4)."""
    logit_scale: Literal["none", "rsqrt_d_model"] = "none"
    """`rsqrt_d_model`: logits are divided by sqrt(d_model) (PaLM, section 5)."""
    dropout: Fraction = 0.0
    """Share of embeddings and of residual branches that is dropped."""
    attention_dropout: Fraction = 0.0
    """Share of attention probabilities that is dropped."""
    initialization: InitializationSettings = InitializationSettings()

    @property
    def kv_heads(self) -> int:
        """Key-value heads with the default filled in."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def width_of_head(self) -> int:
        """`head_dim` with the default filled in."""
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim
