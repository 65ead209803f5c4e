"""The one exception that means "the input is wrong", not "the program is wrong"."""


class ScopeError(ValueError):
    """Bad input, told in one line: what was wrong, what was expected, what to do.

    The command-line programs print the message after ``error:`` and end with exit code 2; anything
    else that is raised is a bug and shows its traceback.
    """
