"""Servers for tests: processes that are forked from one that has imported everything.

`python served.py` reads a JSON list per line, [command line of `serve`, path of the log], and answers with the id of a
process; then with its exit code, after "wait".
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

REPOSITORY = Path(__file__).parents[2]
NEW = 12  # tokens of an answer


class Servers:
    """Starts servers, and stops them at the end."""

    def __init__(self):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        self.parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.running = []

    def start(self, log, *options):
        """Start a server at any free port."""
        print(json.dumps([["--port", "0", *options], str(log)]), file=self.parent.stdin, flush=True)
        server = Running(self, int(self.parent.stdout.readline()), log)
        self.running.append(server)
        return server

    def close(self):
        for server in self.running:
            os.kill(server.process, signal.SIGKILL)
        self.parent.communicate()


class Running:
    """One server."""

    def __init__(self, servers, process, log):
        self.servers, self.process, self.log = servers, process, log

    @property
    def url(self):
        """Its address, as soon as it is ready."""
        return self.wait_for(r"is served at (http://\S+/v1) ")[1]

    def wait_for(self, pattern):
        """Wait until a line of the log matches."""
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.log.read_text() if self.log.exists() else "")):
            printed = self.log.read_text() if self.log.exists() else ""
            is_failed = time.monotonic() > deadline or "Traceback" in printed
            assert not is_failed, f"{pattern} is not in: {printed}"
            time.sleep(0.02)
        return found

    def stop(self, number=signal.SIGINT):
        """Send a signal, and return the exit code."""
        os.kill(self.process, number)
        self.servers.running.remove(self)
        print(json.dumps(["wait", self.process]), file=self.servers.parent.stdin, flush=True)
        return int(self.servers.parent.stdout.readline())


def client_of(server):
    import openai

    return openai.OpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=60)


def complete(client, prompt, **settings):
    return client.completions.create(
        **{"model": "tiny", "prompt": prompt, "max_tokens": NEW, "temperature": 0} | settings
    )


def ask(client, messages, **settings):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "max_tokens": NEW, "temperature": 0} | settings
    )


def post(server, path, body, headers=()):
    """Status and content of the answer to any body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | dict(headers)
    request = urllib.request.Request(f"{server.url}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def generated(model, ids, **settings):
    """What `scratch-gpt generate --temperature 0` prints, and the number of tokens."""
    from train.model.generation import TextStream, generate_text

    stream = TextStream(model[1], lambda text: None, settings.pop("stop", ()))
    generate_text(*model, ids, stream, **{"max_new_tokens": NEW, "do_sample": False} | settings)
    return stream.text, len(stream.ids)


def run():
    import torch

    torch.set_num_threads(1)
    from train import serve
    from train.serving import app, server  # noqa: F401  so that each server has them
    from train.settings.command import run_command

    for line in sys.stdin:
        command, target = json.loads(line)
        if command == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(target, 0)[1]), flush=True)
        elif (child := os.fork()) == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.exit(run_command(serve.main, command))  # not _exit, which would hide a thread that does not end
        else:
            print(child, flush=True)


if __name__ == "__main__":
    run()
