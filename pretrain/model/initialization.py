"""Settings to the distribution of each kind of parameter. The values themselves are drawn in pretrain.parallel.random."""

import math

from pretrain.model.settings import ModelSettings
from pretrain.parallel.random import Constant, Distribution, Normal, Uniform

ZEROS = Constant(0.0)
ONES = Constant(1.0)


def matrix_distribution(model: ModelSettings, fan_in: int, fan_out: int) -> Distribution:
    """Of a projection that reads the residual stream, or of one matrix within a stacked one.

    Args:
        model: the model.
        fan_in: input features of the global matrix.
        fan_out: output features of the global matrix (keys and values count as two matrices).
    """
    if model.initialization.scheme == "xavier_uniform":
        return Uniform(math.sqrt(6.0 / (fan_in + fan_out)))
    if model.initialization.scheme == "fan_in":
        return Normal(fan_in**-0.5)
    return Normal(model.initialization.std)


def residual_distribution(model: ModelSettings, fan_in: int, num_layers: int) -> Distribution:
    """Of a projection that writes to the residual stream.

    GPT-2, section 2.3: its variance is cut by the number of writers, so that the stream does not grow with depth.

    Args:
        model: the model.
        fan_in: input features of the global matrix.
        num_layers: blocks of the stack that the projection is in; each counts as two writers.
    """
    distribution = matrix_distribution(model, fan_in, model.d_model)
    if model.initialization.residual_scale == "none":
        return distribution
    shrink = (2 * num_layers) ** -0.5
    if isinstance(distribution, Uniform):
        return Uniform(distribution.bound * shrink)
    assert isinstance(distribution, Normal)
    return Normal(distribution.std * shrink)


def embedding_distribution(model: ModelSettings) -> Distribution:
    """Of token embeddings, learned positions and the output projection."""
    start = model.initialization
    if start.embedding_std is not None:
        return Normal(start.embedding_std)
    return Normal({"normal": start.std, "xavier_uniform": model.d_model**-0.5, "fan_in": 1.0}[start.scheme])
