"""What people see on a terminal: a pseudo-terminal stands for theirs."""

import os
import pty
import re
import signal
import subprocess
import sys

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown_until(command, wanted):
    """Run a command on a terminal, interrupt it once it has shown a text, and return all that it has shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    try:
        while part := _read(ours):
            shown += part
            if wanted.encode() in shown and process.poll() is None:
                process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, shown.decode()
    finally:
        process.kill()
        os.close(ours)
    return process.pid, _COLOURS.sub("", shown.decode())


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other side is closed, which Linux reports as an error
        return b""


def test_a_server_says_what_it_loads_and_what_it_does(shared_bundle):
    command = [sys.executable, "-m", "cpt_cli", "serve", str(shared_bundle.path), "--port", "0"]
    pid, shown = shown_until(command, "startup complete")
    lines = [line.strip() for line in shown.splitlines()]
    assert f"loading {shared_bundle.path}" in shown
    assert f"Serving {shared_bundle.path}" in lines
    assert f"INFO:     Started server process [{pid}]" in lines
    assert f"INFO:     Finished server process [{pid}]" in lines
