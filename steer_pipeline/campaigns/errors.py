"""What stops a campaign for reasons that a user can mend; the messages say what and how."""


class Stopped(Exception):
    """A step that the rest stands on has failed; the message says which and why."""


class NoSuchName(ValueError):
    """A variant, persona, asset or backfill was asked for that there is none of; the message names what there is."""


class NotHere(Exception):
    """This process cannot drive the graph on this instance; the message says what can."""
