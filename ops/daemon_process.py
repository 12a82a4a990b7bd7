"""A daemon that a check or a bench starts for itself."""

import json
import os
import pathlib
import subprocess
import time


class Ended(Exception):
    """The daemon ended, or didn't listen in time."""


class Daemon:
    """`aha daemon` on a free port of the loopback address, with the home folder `home` of the folder it works in.

    Ends when it is stopped, or at the end of a `with`. A token of the caller's environment is not passed on.
    """

    def __init__(self, aha, folder, *args, home="home"):
        self.folder = pathlib.Path(folder)
        self.home = self.folder / home
        self.log_path = self.folder / f"{home}.log"
        command = [aha, "daemon", "--home", self.home, "--listen", "127.0.0.1:0", *args]
        environment = {name: value for name, value in os.environ.items() if name != "AHA_TOKEN"}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        try:
            self.url = self.wait_for(self.find_url, 60)
        except Ended:
            self.stop()
            raise

    @property
    def port(self):
        """The port that it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def find_url(self):
        """Where it listens, once it has written that: none of a daemon that was there before."""
        try:
            found = json.loads((self.home / "daemon.json").read_text())
        except (OSError, ValueError):
            return None
        return found["url"] if found["pid"] == self.process.pid else None

    def wait_for(self, find, seconds):
        """What `find` finds, asked until it finds something. Raises `Ended` where the daemon ends or time runs out."""
        until = time.monotonic() + seconds
        while True:
            found = find()
            if found:
                return found
            if self.process.poll() is not None:
                raise Ended(f"the daemon ended: {self.said()}")
            if time.monotonic() > until:
                raise Ended(f"nothing came of it in {seconds} s: {self.said()}")
            time.sleep(0.02)

    def said(self):
        """The end of what it wrote."""
        return self.log_path.read_text(errors="replace")[-2000:]

    def stop(self):
        """Asks it to end, and ends it after a minute."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
