"""One SLURM node on this machine, without systemd: slurmctld, slurmd and munge from Debian's packages, as root.

Two partitions on the same node: jobs of `high` preempt those of `low`, which are queued again.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1024 Features=fast State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")


def why_not() -> str:
    """Why there can be no node here; "" where there can."""
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "slurmd wants to be root"


@contextlib.contextmanager
def node(folder: Path) -> Iterator[str]:
    """The node runs, and SLURM_CONF says so to commands of this process, until the end of the block.

    Yields why it did not start, "" where it did.
    """
    start_munge()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], ports=free_ports(2), folder=folder))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    os.environ["SLURM_CONF"] = str(conf)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemons = [
        subprocess.Popen([f"/usr/sbin/{name}", "-D", "-c", "-f", str(conf)], **quiet) for name in ("slurmctld", "slurmd")
    ]
    try:
        with contextlib.suppress(AssertionError):
            wait_for(is_idle, 60, "an idle node")
        yield "" if is_idle() else last_words(folder / "ctld.log")
    finally:
        told("scancel", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=60)
        del os.environ["SLURM_CONF"]


def last_words(log: Path) -> str:
    return log.read_text()[-300:] if log.exists() else "it left no log"


def is_idle() -> bool:
    return "idle" in told("sinfo", "--noheader", "--format=%t")


def start_munge() -> None:
    """The authentication service of the whole machine, if it does not run yet."""
    if MUNGE_SOCKET.exists() and subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    MUNGE_SOCKET.parent.mkdir(exist_ok=True)
    shutil.chown(MUNGE_SOCKET.parent, "munge", "munge")
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged --force"], check=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def told(*command: str) -> str:
    """What a SLURM command says; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(holds, seconds: float, what: str) -> None:
    """Until it holds."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"{what} did not come within {seconds:g} s"
        time.sleep(0.2)
