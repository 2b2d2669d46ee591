"""A real Slurm of four nodes on this one machine, for tests: daemons, kills and cut links are real, GPUs are not.

A cluster is a process id, mount and network namespace with a bridge in it; a host is a set of namespaces inside. All of it
lives in memory and ends with the cluster's first process, which dies with the process that started it: nothing is left even
after kill -9, so nothing is swept. A host has its own name, address, processes, /dev/shm, /tmp (so /tmp/ray) and SCRATCH. It
shares the disk of the machine, of /tmp only the folders that were named. Two clusters on one machine do not see each other.

Not taken: containers (need a daemon and images), `slurmd -N` with many ports (one hostname, nothing to kill or to cut off).
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from tests.slurm.jobs import Job, job_of, states_in

ROOT = Path(__file__).parents[2]
MACHINES = Path(__file__).parent / "machines"
CONFIG = MACHINES / "config"
CONTROLLER = "ctl"
NODES = ("n1", "n2", "n3", "n4")
SCRATCH = Path("/run/scratch")
"""A folder of a host's own that outlives the host's death."""
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "shellcheck", "ip", "nsenter", "unshare", "setpriv", "pkill")
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


class ClusterFailed(Exception):
    """A daemon died, a wait ran out or a command on a host failed; the message holds its output."""


def missing() -> list[str]:
    """What this machine lacks for a cluster, in words."""
    tools = [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]
    return ([] if os.geteuid() == 0 else ["root"]) + tools


def search_path() -> str:
    """PATH with the folders of daemons, which a user's may lack."""
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


class Cluster:
    """A context: up, with all nodes idle, inside; gone without a trace after it.

    `shared` are folders below /tmp that every host sees, besides the checkout and its interpreter. Raises ClusterFailed.
    """

    def __init__(self, shared: Sequence[Path] = (), config: Path = CONFIG, start_s: float = 60) -> None:
        self._shared = sorted(
            {str(path.resolve()) for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix), *shared)}
        )
        self._config = config
        self._start_s = start_s
        self._first: _Process | None = None
        self._hosts: dict[str, _Process] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        outer = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--ipc", "--mount", "--pid"]
        script = ["bash", str(MACHINES / "cluster.sh"), str(self._config)]
        self._first = _Process("munged", [*outer, "--fork", "--mount-proc", "--kill-child", *script], _environment())
        self.wait_until(self.file("/run/slurm/munge.socket").exists, self._start_s, "munged listens")
        for host in (CONTROLLER, *NODES):
            self.revive(host)
        self.wait_for_nodes("idle", NODES, self._start_s)

    def stop(self) -> None:
        """Ends every process of the cluster, and with them its namespaces and mounts."""
        if self._first is not None:
            self._first.kill()
        for host in self._hosts.values():
            host.kill()
        self._first, self._hosts = None, {}

    def file(self, path: str | Path) -> Path:
        """A file of the cluster's own (below /run) as seen from outside."""
        assert self._first is not None, "the cluster is not up"
        return Path(f"/proc/{self._first.init()}/root{path}")

    # hosts

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/tmp"),
        timeout: float = 60,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host, whatever its exit code. Raises ClusterFailed where the time, in seconds, is over."""
        command = [*self._hosts[host].enter(), "env", "-C", str(cwd), *argv]
        try:
            return subprocess.run(
                command,
                env=_environment(env),
                input=stdin,
                timeout=timeout,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{error.stdout or b''!r} {error.stderr or b''!r}"
            raise ClusterFailed(f"{host}: {' '.join(argv)} ran for more than {timeout} s; it said {said}") from None

    def output(
        self, host: str, argv: Sequence[str], *, cwd: Path = Path("/tmp"), timeout: float = 60, stdin: str = ""
    ) -> str:
        """What a command on a host writes. Raises ClusterFailed where its exit code is not 0."""
        done = self.run(host, argv, cwd=cwd, timeout=timeout, stdin=stdin)
        if done.returncode != 0:
            raise ClusterFailed(f"{host}: {' '.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def kill_node(self, node: str) -> None:
        """Power off: every process of the node ends at once."""
        self._hosts.pop(node).kill()

    def revive(self, node: str) -> None:
        """Power on: the node starts anew with what its scratch held."""
        assert self._first is not None, "the cluster is not up"
        assert node not in self._hosts, f"{node} is up"
        daemon = ["slurmctld", "-D"] if node == CONTROLLER else ["slurmd", "-D", "-N", node]
        inner = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        argv = [*self._first.enter(), *inner, "bash", str(MACHINES / "host.sh"), node, *daemon]
        self._hosts[node] = _Process(f"{daemon[0]} of {node}", argv, _environment({"SHARED": ":".join(self._shared)}))

    def cut_off(self, node: str) -> None:
        """Takes the node's cable out; its processes go on."""
        self._link(node, "down")

    def reconnect(self, node: str) -> None:
        """Puts the cable back."""
        self._link(node, "up")

    def _link(self, node: str, state: str) -> None:
        assert self._first is not None, "the cluster is not up"
        command = [*self._first.enter(), "ip", "link", "set", f"v-{node}", state]
        # A node that was just switched on is there a little before its cable.
        self.wait_until(lambda: subprocess.call(command, env=_environment()) == 0, 10, f"the link of {node} is {state}")

    def heal(self) -> None:
        """Ends all jobs and brings back every node that was killed, cut off or drained."""
        self.run(CONTROLLER, ["scancel", "--user=root"])
        for node in NODES:
            if node not in self._hosts:
                self.revive(node)
            self.reconnect(node)
            if self.node_states().get(node, "").startswith("dr"):
                self.resume(node)

    # Slurm

    def drain(self, node: str) -> None:
        """No new job starts on the node."""
        self.output(CONTROLLER, ["scontrol", "update", f"nodename={node}", "state=drain", "reason=test"])

    def resume(self, node: str) -> None:
        """Jobs may start on the node again."""
        self.output(CONTROLLER, ["scontrol", "update", f"nodename={node}", "state=resume"])

    def submit(self, script: str, *options: str, folder: Path) -> int:
        """Submits the text of a batch script that runs in `folder` and writes slurm-JOB.out there; the job's number."""
        said = self.output(
            CONTROLLER, ["sbatch", "--parsable", f"--chdir={folder}", *options], stdin=script, cwd=folder
        )
        return int(said.strip().split(";")[0])

    def job(self, number: int) -> Job:
        """The job as the controller knows it now."""
        return job_of(self.output(CONTROLLER, ["scontrol", "show", "job", "--oneliner", str(number)]))

    def history(self, number: int) -> list[str]:
        """How each attempt of the job ended, the oldest first (jobcomp): NODE_FAIL, PREEMPTED, COMPLETED ..."""
        file = self.file("/run/slurm/log/jobcomp.txt")
        return states_in(file.read_text(), number) if file.exists() else []

    def cancel(self, number: int) -> None:
        """Ends the job; one that has ended already is left alone."""
        self.run(CONTROLLER, ["scancel", str(number)])

    def wait_for(self, number: int, *states: str, timeout: float) -> Job:
        """Waits until the job is in one of the states (PENDING, RUNNING, COMPLETED ...), `timeout` in seconds."""
        self.wait_until(
            lambda: self.job(number).state in states,
            timeout,
            f"job {number} is {' or '.join(states)}",
            lambda: f"{self.job(number)}\nearlier attempts: {self.history(number)}",
        )
        return self.job(number)

    def node_states(self) -> dict[str, str]:
        """State of each node in sinfo's short words; a node that does not answer has a star behind it."""
        done = self.run(CONTROLLER, ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"], timeout=30)
        return dict(line.split() for line in done.stdout.splitlines())

    def wait_for_nodes(self, state: str, nodes: Sequence[str], timeout: float) -> None:
        """Waits until all of the nodes are in a state, in sinfo's short words."""

        def reached() -> bool:
            states = self.node_states()
            return all(states.get(node) == state for node in nodes)

        self.wait_until(reached, timeout, f"{', '.join(nodes)} {state}", lambda: str(self.node_states()))

    def wait_until(self, reached: Callable[[], bool], timeout: float, what: str, seen: Callable[[], str] = str) -> None:
        """Polls for at most `timeout` seconds. Raises ClusterFailed, at once where a daemon has died, with its console."""
        end = time.monotonic() + timeout
        while True:
            self._fail_where_a_daemon_died()
            if reached():
                return
            if time.monotonic() > end:
                raise ClusterFailed(f"waited {timeout:g} s until {what}; seen: {seen()}\n{self._controller_log()}")
            time.sleep(0.05)

    def _fail_where_a_daemon_died(self) -> None:
        for process in (self._first, *self._hosts.values()):
            if process is not None and process.ended:
                raise ClusterFailed(f"{process.name} died; its console:\n{process.console()}")

    def _controller_log(self) -> str:
        file = self.file("/run/slurm/log/slurmctld.log")
        return "slurmctld.log:\n" + "\n".join(file.read_text().splitlines()[-30:]) if file.exists() else ""


class _Process:
    """An `unshare` that waits for the first process of its namespaces; an `nsenter` may wait for it in turn."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str]) -> None:
        self.name = name
        self._console: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        # Ctrl-C in a terminal is for the tests alone; they end the cluster.
        self._popen = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def console(self) -> str:
        # The processes write at the offset of this file, so it must not be moved.
        return os.pread(self._console.fileno(), 1 << 20, 0).decode(errors="replace")

    def init(self) -> int:
        """The first process of the namespaces, as numbered here. Raises ClusterFailed where there is none within 10 s."""
        end = time.monotonic() + 10
        while time.monotonic() < end and not self.ended:
            pid = self._popen.pid
            while pid is not None and not _is_first(pid):
                pid = _child(pid)
            if pid is not None:
                return pid
            time.sleep(0.01)
        raise ClusterFailed(f"{self.name} did not start; its console:\n{self.console()}")

    def enter(self) -> list[str]:
        """The start of a command that runs in the namespaces."""
        return ["nsenter", f"--target={self.init()}", "--net", "--uts", "--ipc", "--mount", "--pid", "--"]

    def kill(self) -> None:
        """Kills the first process; the kernel ends all others of its namespace before `unshare` sees it end."""
        try:
            if not self.ended:
                os.kill(self.init(), signal.SIGKILL)
        except (ClusterFailed, ProcessLookupError):
            self._popen.kill()
        self._popen.wait()
        self._console.close()


def _is_first(pid: int) -> bool:
    """Whether a process is number 1 of a namespace."""
    try:
        numbers = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")
        )
    except (OSError, StopIteration):
        return False
    return numbers.split()[-1] == "1"


def _child(pid: int) -> int | None:
    """The one child of a process, found by its parent's number: not every kernel has /proc/PID/task/TID/children."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                return int(stat.parent.name)
        except OSError:
            continue
    return None


def _environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a login: nothing of a Slurm job or a test that the tests themselves run in."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN", "PYTEST"))
    }
    return kept | {"PATH": search_path(), "LC_ALL": "C.UTF-8"} | dict(changes or {})
