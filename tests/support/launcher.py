"""Start training processes in a fraction of a second: a server imports everything once and forks for each trial.

`python launcher.py` reads a JSON list per line, [arguments of the command, number of processes, path of the log, hosts,
command or name in `faulty.SCRIPTS`], and answers with the process ids, then with their exit codes.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.forks import end_with, free_port, set_rank

REPOSITORY = Path(__file__).parents[2]


class Launcher:
    """Forks trials from a process that has imported everything."""

    def __init__(self):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.server.stdout.readline() == "ready\n"
        self.running = []

    def start(self, arguments, processes, log, hosts=(), script="pretrain"):
        """Start a command in several processes and return their ids.

        Args:
            hosts: (network namespace, address in it) of each process; default: all on this host.
        """
        print(json.dumps([arguments, processes, str(log), hosts, script]), file=self.server.stdin, flush=True)
        self.running = json.loads(self.server.stdout.readline())
        return self.running

    def wait(self):
        """The exit codes of all processes of the trial; for a killed one, minus the signal."""
        self.running = []
        return json.loads(self.server.stdout.readline())

    def run(self, arguments, processes, log, script="pretrain"):
        """Start a trial, wait, and assert that it succeeds."""
        self.start(arguments, processes, log, script=script)
        codes = self.wait()
        assert codes == [0] * processes, Path(log).read_text()[-5000:]

    def end(self):
        """Kill the processes that still run."""
        for process in self.running:
            os.kill(process, signal.SIGKILL)
        if self.running:
            self.wait()

    def close(self):
        self.server.communicate()


def serve():
    import torch

    torch.set_num_threads(1)
    from tests.support import faulty
    from train import finetune, finetune_classifier, pretrain
    from train.settings.command import run_command

    commands = {"pretrain": pretrain, "finetune": finetune, "finetune_classifier": finetune_classifier}
    scripts = {name: command.main for name, command in commands.items()} | faulty.SCRIPTS
    print("ready", flush=True)
    for line in sys.stdin:
        arguments, processes, log, hosts, script = json.loads(line)
        port = free_port()
        children = []
        for rank in range(processes):
            if (child := os.fork()) == 0:
                if hosts:
                    move_to(hosts[rank][0], hosts[0][1])
                set_rank(rank, processes, port)
                end_with(partial(run_command, scripts[script], arguments), log)
            children.append(child)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def move_to(namespace, main_address):
    """Move this process into a network namespace."""
    file = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    assert ctypes.CDLL(None).setns(file, 0x40000000) == 0  # CLONE_NEWNET; os.setns comes with Python 3.12
    os.environ.update(MASTER_ADDR=main_address, GLOO_SOCKET_IFNAME="cable")


if __name__ == "__main__":
    serve()
