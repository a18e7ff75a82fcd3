"""Errors of several ranks that compute a model together. Nothing here imports torch."""


class RankFailedError(RuntimeError):
    """One of the ranks that compute a model together has failed, so none can go on."""


class RankLostError(RankFailedError):
    """Another rank is gone."""
