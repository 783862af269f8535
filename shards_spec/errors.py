"""The two kinds of errors that a person meets; anything else is a defect of ours."""


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what, where, got, expected, what to do.

    Every command prints it as `COMMAND: error: MESSAGE` without a traceback and exits with status 2.
    """


class DamagedSampleError(RuntimeError):
    """Bytes of a shard are not what its index says. The message names shard, key and byte offset."""
