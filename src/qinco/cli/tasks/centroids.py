"""`qinco ivf_centroids`: coarse centroids by k-means."""

import time

import qinco
from qinco.cli.keys import TRAINSET, task
from qinco.cli.open import conditions, files_read, find_device, open_trainset


@task(
    "ivf_centroids",
    "coarse centroids by k-means",
    keys=[f"ivf_K output {TRAINSET} overwrite seed device cpu threads"],
    required=("ivf_K", "output", "trainset|db"),
    imports=("qinco.codec",),
)
def ivf_centroids(settings, console) -> None:
    from qinco.codec.centroids import MAX_POINTS_PER_CENTROID

    source, count, begun = open_trainset(settings, False), settings["ivf_K"], time.monotonic()
    qinco.kmeans(
        source, count, seed=settings["seed"], device=find_device(settings), output=settings["output"],
        overwrite=settings["overwrite"], inputs=files_read(settings), progress=console.progress,
    )  # fmt: skip
    result = {
        "output": settings["output"], "num_lists": count, "dim": source.dim,
        "num_vectors": len(source), "num_sampled": min(len(source), MAX_POINTS_PER_CENTROID * count),
        "seconds": time.monotonic() - begun,
        "threads": conditions(settings)["threads"],
    }  # fmt: skip
    console.print_result(result, settings["json"])
