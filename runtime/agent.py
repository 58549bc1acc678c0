"""Open MPI's launch agent: `agent HOST COMMAND…`, in the place of ssh.

mpirun runs it once per remote host to start its daemon there. It hands the command to the leader's launcher, which
waits on a unix socket in a directory only its own user can enter, and which has an authenticated connection to that
host's launcher. It ends when the daemon ends, with the daemon's status. It imports little, because every start of a
group waits for it.
"""

import json
import os
import socket
import sys

SOCKET_VARIABLE = "TRITONFLEET_AGENT_SOCKET"


def main(arguments: list[str]) -> int:
    path = os.environ.get(SOCKET_VARIABLE)
    if path is None or len(arguments) < 2:
        print(f"usage: agent HOST COMMAND…, started by mpirun with {SOCKET_VARIABLE} set", file=sys.stderr)
        return 2
    host, *command = arguments
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.connect(path)
        # Joined by spaces, as ssh does: Open MPI quotes for a shell and begins with assignments of PATH and the like.
        launcher.sendall(json.dumps({"host": host, "command": " ".join(command)}).encode() + b"\n")
        with launcher.makefile("rb") as answers:
            answer = answers.readline()
    if not answer:
        print(f"tritonfleet: the connection to {host} was lost", file=sys.stderr)
        return 1
    return int(json.loads(answer)["status"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
