"""Where a training computes: on the devices of one machine, or on several machines together."""

import contextlib
import json
import os
import signal
import socket
import zlib
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf

from superres.errors import InputError

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
        tf.errors.DeadlineExceededError, tf.errors.InternalError)  # what a machine meets when another is gone


def strategy(replicas: int = 0, workers: Iterable[str] = ()) -> tf.distribute.Strategy:
    """The `tf.distribute.MirroredStrategy` of so many devices, or one for several machines.

    Must be called before TensorFlow computes anything. Several machines wait here for one another.

    Args:
        replicas: See `RunSettings.replicas`.
        workers: See `RunSettings.workers`; empty: those of the environment's TF_CONFIG, if any.

    Raises:
        InputError: for devices or machines that are not there.
    """
    cluster = _cluster(workers)
    if cluster:
        if replicas:
            raise InputError("run.replicas: on several machines, each trains on all of its GPUs, or its CPU")
        print(f"{cluster.task_type} {cluster.task_id} of {cluster.cluster_spec().as_dict()}: waiting for the "
              "other machines", flush=True)
        with _default_signals():
            return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    gpus = tf.config.list_physical_devices("GPU")
    wanted = replicas or max(1, len(gpus))
    if gpus:
        if wanted > len(gpus):
            raise InputError(f"replicas: {wanted} asked for, but {len(gpus)} GPUs are visible")
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(wanted)])
    if wanted > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * wanted
        if tf.config.get_logical_device_configuration(cpu) != logical:
            tf.config.set_logical_device_configuration(cpu, logical)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(wanted)])


@contextlib.contextmanager
def _default_signals():
    """Ctrl-C ends the process while TensorFlow waits, and SIGTERM, which TensorFlow catches, after that."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _cluster(workers):
    """TensorFlow's resolver of a cluster of several machines, or None."""
    if not workers and not os.environ.get("TF_CONFIG"):
        return None
    if workers:
        here = _place(workers)
        given = {"cluster": {"worker": list(workers)}, "task": {"type": "worker", "index": here}}
    else:
        try:
            given = json.loads(os.environ["TF_CONFIG"])
            given["cluster"][given["task"]["type"]][int(given["task"]["index"])]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"TF_CONFIG: cannot be read ({type(error).__name__}: {error})") from None
    if sum(map(len, given["cluster"].values())) < 2:
        return None
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(given["cluster"]), task_type=given["task"]["type"],
        task_id=int(given["task"]["index"]), rpc_layer="grpc")


def _place(workers):
    """Which of these addresses, HOST:PORT, is this machine's: the first whose port it can open."""
    for number, address in enumerate(workers):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) >= 2**16:
            raise InputError(f"run.workers: each is HOST:PORT, not {address}")
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
            return number
    raise InputError(f"run.workers: none of {', '.join(workers)} is an address of this machine with a free "
                     "port; for names that it does not know itself by, set TF_CONFIG instead")


def several_machines(distribution: tf.distribute.Strategy) -> bool:
    """Whether other machines train too."""
    return isinstance(distribution, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(distribution: tf.distribute.Strategy) -> bool:
    """Whether this machine keeps the run's folder: of several, the first."""
    if not several_machines(distribution):
        return True
    resolver = distribution.cluster_resolver
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().as_dict())


def any_machine(distribution: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether any machine says yes. All must ask."""
    if not several_machines(distribution):
        return flag
    return bool(_sums(distribution, [tf.constant(float(flag), "float64")])[0] > 0)


def alike(distribution: tf.distribute.Strategy, text: str) -> bool:
    """Whether all machines have this text. All must ask."""
    if not several_machines(distribution):
        return True
    number = tf.constant(float(zlib.crc32(text.encode())), "float64")
    (first,) = _sums(distribution, [number], first_only=True)
    return not any_machine(distribution, bool(first != number))


def take_from_chief(distribution: tf.distribute.Strategy, variables: list[keras.Variable]) -> None:
    """Give variables the values that they have on the first machine. All must ask, for the same ones."""
    # One type, which TensorFlow asks for, and which holds float32 and the number of steps exactly.
    values = _sums(distribution, [tf.cast(variable.value, "float64") for variable in variables],
                   first_only=True)
    with distribution.scope():
        for variable, value in zip(variables, values, strict=True):
            variable.assign(tf.cast(value, variable.dtype))


def _sums(distribution, values, first_only=False):
    """Of each float64 tensor the sum over all devices of all machines, or its value on the first."""

    @tf.function
    def total(values):
        context = tf.distribute.get_replica_context()
        counts = tf.cast(context.replica_id_in_sync_group == 0 if first_only else True, "float64")
        return context.all_reduce("SUM", [value * counts for value in values])

    return [distribution.experimental_local_results(value)[0]
            for value in distribution.run(total, args=(values,))]


@contextlib.contextmanager
def others_lost(folder: object, distribution: tf.distribute.Strategy) -> Iterator[None]:
    """An InputError in place of what TensorFlow raises when one of several machines is gone."""
    try:
        yield
    except LOST as error:
        if several_machines(distribution):
            raise InputError(
                f"{folder}: another machine was lost ({type(error).__name__}); unless that one says why, the "
                "same command on all machines goes on after the last finished epoch") from None
        raise
