"""What a user can put right."""


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do."""
