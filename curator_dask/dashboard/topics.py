"""What workers and clients tell: the topics of Dask's events, and the form of each event.

``PROGRESS``, from workers, twice a second at most: a dict with the ``run``, the ``worker``, and what it has done since
the last: ``images``, ``failed`` of them, ``seconds`` by what was done (`WORK`), rows ``left_out`` by which filter; and
``under_way``, the shards that it is at now. A client is subscribed to these while its run lasts.

``RUNS``, from clients, once a second at most: a dict with the ``run``, the ``client``, ``what`` it is, and all that is
known of it so far, see `curator_dask.meter.Meter.told`.
"""

PROGRESS = "curator_dask-progress"
RUNS = "curator_dask-runs"

#: What the time of a task is spent on, with what is done about it where most of it goes there. Fetching and decoding
#: happen in a thread of their own, beside the model; the model waits for these two.
WORK = {
    "fetch": "reading shards takes longest: put them nearer, or give a worker more threads (threads_per_worker)",
    "decode": "decoding takes longest: more decode threads (num_threads), more cores, or smaller images in the tars",
    "forward": "the model takes longest: a GPU, a larger batch_size there, or a smaller model",
    "write": "writing takes longest: a faster place for the output",
}
WAITING = "model waits"
