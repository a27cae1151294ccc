"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input from outside: a flag, a config key, a file, a folder.

    The message is one line that names the key or file, what was expected and
    what to do. `main.py` prints it on stderr and exits with status 2, without
    a stack trace. Everything else that goes wrong is a bug and keeps its trace.
    """
