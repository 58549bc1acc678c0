"""Waits for the notice that a cloud takes this spot node back, and then ends the launcher as SIGTERM does.

Only for hosts whose kubelet does not end pods on that notice itself: with `--spot-notice CLOUD` the launcher asks the
instance's metadata service, which pods can reach only where their network lets them. A service that does not answer is
asked again; the notice is best effort at each cloud.
"""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

CLOUDS = ("aws", "gcp", "azure")
ADDRESS_VARIABLE = "TRITONFLEET_METADATA_ADDRESS"
"""host:port in the place of the metadata service's own address."""

# Amazon recommends asking every five seconds (EC2 User Guide, "Spot Instance interruption notices"), Microsoft every
# second (Azure documentation, "Scheduled Events for Linux VMs"); Google's service answers at the moment of the change.
PERIOD_SECONDS = {"aws": 5.0, "gcp": 0.0, "azure": 1.0}
RETRY_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_WAIT_SECONDS = 60
_TOKEN_SECONDS = 300
_AZURE = {"Metadata": "true"}


def end_on_notice(cloud: str, say: Callable[[str], None]) -> None:
    """Starts asking, in a thread that ends with this process."""
    threading.Thread(target=_watch, args=(cloud, say), name="spot notice", daemon=True).start()


def is_reclaimed(cloud: str) -> bool:
    """Whether the cloud has given notice. Raises OSError, or what a malformed answer leads to."""
    return {"aws": _aws, "gcp": _gcp, "azure": _azure}[cloud]()


def _watch(cloud: str, say: Callable[[str], None]) -> None:
    answers = True
    while True:
        try:
            if is_reclaimed(cloud):
                break
            answers, pause = True, PERIOD_SECONDS[cloud]
        except (OSError, ValueError, LookupError, TypeError) as error:
            if answers:
                say(f"the metadata service tells nothing of spot notices ({error}); asking on")
            answers, pause = False, RETRY_SECONDS
        time.sleep(pause)
    say("the cloud takes this spot node back")
    os.kill(os.getpid(), signal.SIGTERM)


def _aws() -> bool:
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
    token = _ask("169.254.169.254", "/latest/api/token", seconds, method="PUT")
    try:
        _ask("169.254.169.254", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # there is no notice
            return False
        raise
    return True


def _gcp() -> bool:
    path = f"/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={_WAIT_SECONDS}"
    # A notice given before the question is no change any more.
    for each in ("/computeMetadata/v1/instance/preempted", path):
        answer = _ask("metadata.google.internal", each, {"Metadata-Flavor": "Google"}, _WAIT_SECONDS + _ANSWER_SECONDS)
        if answer.strip() == "TRUE":
            return True
    return False


def _azure() -> bool:
    name = _ask("169.254.169.254", "/metadata/instance/compute/name?api-version=2021-02-01&format=text", _AZURE)
    text = _ask("169.254.169.254", "/metadata/scheduledevents?api-version=2020-07-01", _AZURE)
    # Events of a whole scale set are told to each of its machines.
    return any(
        event["EventType"] in ("Preempt", "Terminate") and name in event["Resources"]
        for event in json.loads(text)["Events"]
    )


def _ask(host: str, path: str, headers: dict[str, str], seconds: float = _ANSWER_SECONDS, method: str = "GET") -> str:
    address = os.environ.get(ADDRESS_VARIABLE, host)
    request = urllib.request.Request(f"http://{address}{path}", headers=headers, method=method)
    # Not through a proxy: it would ask its own machine's service.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
        return answer.read().decode()
