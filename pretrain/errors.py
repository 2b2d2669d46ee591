"""The errors a user can cause or meet, each with the exit code of the command.

A message names the field, file or line, the rule that was broken, and the fix. The command prints the message alone; a
traceback is for faults of the program, never for a user's mistake.
"""


class PretrainError(Exception):
    """Base of all errors below; the exit code of the base is that of a fault inside a rank."""

    exit_code = 70


class CheckFailed(PretrainError):
    """A check ran to its end and gave a bad verdict (parity, verify)."""

    exit_code = 1


class ConfigError(PretrainError):
    """A config, a flag or a combination of them that cannot be run."""

    exit_code = 2


class DataError(PretrainError):
    """A corpus, a token shard or a tokenizer that is missing, damaged or does not fit."""

    exit_code = 3


class CheckpointError(PretrainError):
    """A checkpoint that is missing, damaged or belongs to another model."""

    exit_code = 4


class StorageError(PretrainError):
    """A full disk, or a folder that cannot be written or read."""

    exit_code = 5


class RankFault(PretrainError):
    """A rank died or raised; the message names the rank and the cause."""

    exit_code = 70


class Preempted(PretrainError):
    """USR1 or TERM arrived: the step was finished and a checkpoint saved; start the same command again."""

    exit_code = 75


class Interrupted(PretrainError):
    """Ctrl-C: the step was finished and a checkpoint saved."""

    exit_code = 130
