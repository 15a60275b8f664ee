"""Every error that knee raises on purpose. The message is one line for the user: what is wrong and how to mend it.

The command line turns a `UserError` into exit code 2 and any other `KneeError` into exit code 1, without a traceback.
"""


class KneeError(Exception):
    """Base of all errors that knee raises on purpose."""


class UserError(KneeError):
    """The user's input is wrong: an option, a prompt, a model file. Exit code 2."""


class ModelLoadError(UserError):
    """A model's files cannot be used: missing, damaged, or of a kind that is not supported."""


class RequestError(UserError):
    """A request can never be served: too long, an unknown token, more memory than there is."""


class RecordError(UserError):
    """A run folder or a record cannot be read or written."""


class OutOfMemory(UserError):
    """The weights or the KV cache do not fit; said before anything is allocated."""


class NumericsError(KneeError):
    """A weight or a logit is NaN or infinite. Names the tensor or the step."""


class DownloadError(KneeError):
    """A model could not be fetched; says which file to put where."""
