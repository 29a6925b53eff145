"""There is no cluster to be found."""


def load_kube_config() -> None:
    """Nothing to load."""
