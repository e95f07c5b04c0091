"""`qinco ivf_centroids`: coarse centroids by k-means."""

from qinco.cli.keys import TRAINSET, task


@task(
    "ivf_centroids",
    "coarse centroids by k-means",
    keys=[f"ivf_K output {TRAINSET} overwrite seed device cpu threads"],
    required=("ivf_K", "output", "trainset|db"),
    imports=("qinco.codec",),
)
def ivf_centroids(settings, console) -> None:
    from qinco.cli import coding

    coding.ivf_centroids(settings, console)
