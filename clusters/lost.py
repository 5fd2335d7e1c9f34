"""The end of a cluster: apart from all else, so that a run that needs no cluster loads nothing of one."""


class ClusterLostError(Exception):
    """The cluster itself is gone, and all work on it; the message says what died."""
