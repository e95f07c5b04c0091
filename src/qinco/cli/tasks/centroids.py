"""`qinco ivf_centroids`: coarse centroids by k-means."""

import time

import qinco
from qinco.cli.keys import CLUSTER, TRAINSET, task
from qinco.cli.open import conditions, executor_of, files_read, find_device, open_trainset


@task(
    "ivf_centroids",
    "coarse centroids by k-means",
    keys=[f"ivf_K output {TRAINSET} overwrite seed {CLUSTER} device cpu threads"],
    required=("ivf_K", "output", "trainset|db"),
    imports=("qinco.codec",),
)
def ivf_centroids(settings, console) -> None:
    from qinco.codec.centroids import MAX_POINTS_PER_CENTROID

    source, count, begun = open_trainset(settings, False), settings["ivf_K"], time.monotonic()
    given = {
        "seed": settings["seed"], "overwrite": settings["overwrite"], "inputs": files_read(settings),
        "progress": console.progress,
    }  # fmt: skip
    most = MAX_POINTS_PER_CENTROID
    if (executor := executor_of(settings)) is None:
        qinco.kmeans(source, count, output=settings["output"], device=find_device(settings), **given)
    else:
        from qinco.distributed.clustering import MAX_POINTS_PER_CENTROID as most
        from qinco.distributed.clustering import kmeans

        kmeans(source, count, settings["output"], executor=executor, **given)
    result = {
        "output": settings["output"], "num_lists": count, "dim": source.dim,
        "num_vectors": len(source), "num_sampled": min(len(source), most * count),
        "seconds": time.monotonic() - begun,
        "threads": conditions(settings)["threads"],
    }  # fmt: skip
    console.print_result(result, settings["json"])
